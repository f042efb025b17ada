"""The outer loop of every run: the remaining rounds, evaluations between them, a summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hiso.errors import RoundAborted
from hiso.ring.ledger.runfile import Evaluation
from hiso.ring.server import Aborted
from hiso.run.folder import RunFolder
from hiso.run.observer import Observer
from hiso.run.results import Round, Summary, lowest
from hiso.run.settings import Values


@dataclass(frozen=True)
class Loop:
    """The loop; its attributes are the parts that differ between kinds of runs.

    Attributes:
        folder: The folder for metrics.jsonl and summary.json.
        settings: The number of rounds, and when to evaluate what.
        observer: Receives the progress.
        rounds: Returns the rounds so far, from a number on.
        evaluations: Returns the evaluations so far.
        record: Stores the metrics of a position on a split.
        round: Tries the next round; returns `Aborted` if the attempt was aborted.
        summarise: Returns the summary of the run.
        measure: Metrics of the model at its present position, on a split; None without a model.
        keep: Called with the position after each round, to save snapshots.
        attempts: How many attempts in a row may be aborted.
    """

    folder: RunFolder
    settings: Values
    observer: Observer
    rounds: Callable[[int], list[Round]]
    evaluations: Callable[[], list[Evaluation]]
    record: Callable[[int, str, Mapping[str, float]], None]
    round: Callable[[], object]
    summarise: Callable[[], Summary]
    measure: Callable[[str], dict[str, float]] | None = None
    keep: Callable[[int], None] = lambda _: None
    attempts: int = 1

    def run(self) -> Summary:
        """Runs the remaining rounds, with evaluations before, between and after them.

        The run ends early if `patience` evaluations on the tuning split gave no new lowest loss.
        With `keep` = best, each position that is the best so far is evaluated on the test split at
        once, so that the model need not be rebuilt later.

        Raises:
            RoundAborted: All allowed attempts at a round were aborted.
            Diverged: A loss is not finite or has exploded; this round is not recorded.
            StorageError: A file cannot be written.
        """
        before = self.rounds(0)
        position, end = len(before), self.settings.rounds
        self.folder.write_metrics(before, self.evaluations())
        if position < end:
            self.folder.summary.unlink(missing_ok=True)
        if position == 0:
            self._tune(0)
            self._evaluate(0, "test")
        self.observer.started(position, end)
        for done in before:
            self.observer.round(done)
        while position < end:
            self._tune(position)
            if self._stalled():
                self.observer.notice(
                    f"stopped at position {position}: no lower loss on the tuning split for "
                    f"{self.settings.patience} evaluations"
                )
                break
            self._one_round(position)
            position += 1
            self.keep(position)
        self._tune(position)
        self._evaluate(position, "test")
        if self.settings.client_examples:
            for client in range(self.settings.clients):
                self._evaluate(position, f"client {client}")
        return self.folder.keep_summary(self.summarise())

    def _one_round(self, number: int) -> None:
        for attempt in range(1, self.attempts + 1):
            closed = self.round()
            if not isinstance(closed, Aborted):
                break
            if attempt == self.attempts:
                raise _aborted(number, attempt, closed.reason)
        (done,) = self.rounds(number)
        self.folder.append_metrics(done)
        self.observer.round(done)

    def _tune(self, position: int) -> None:
        every = self.settings.eval_every
        if every and position % every == 0:
            self._evaluate(position, "dev")
            if self.settings.keep == "best" and lowest(self.evaluations()) == position:
                self._evaluate(position, "test")

    def _stalled(self) -> bool:
        tuned = [e for e in self.evaluations() if e.split == "dev"]
        best = lowest(tuned) or 0
        return 0 < self.settings.patience <= sum(e.position > best for e in tuned)

    def _evaluate(self, position: int, split: str) -> None:
        """Evaluates if there is a model and this evaluation is missing."""
        known = {(e.position, e.split) for e in self.evaluations()}
        if self.measure is None or (position, split) in known:
            return
        evaluation = Evaluation(position, split, self.measure(split))
        self.record(position, split, evaluation.metrics)
        self.folder.append_metrics(evaluation)
        self.observer.evaluated(evaluation)


def _aborted(number: int, attempts: int, reason: str) -> RoundAborted:
    times = "" if attempts == 1 else f" {attempts} times, last because"
    return RoundAborted(
        f"round {number} was aborted{times}: {reason}. Correct the cause, then start again to "
        "resume: "
        "every finished round is kept",
        round=number,
        attempts=attempts,
        reason=reason,
    )
