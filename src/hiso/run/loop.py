"""The outer loop of every run: rounds until there are enough, evaluations on the way, a summary."""

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
    """What one kind of run does in its own way; `run` does what all do alike.

    Attributes:
        folder: Where metrics.jsonl and summary.json are written.
        settings: How many rounds, and what is evaluated when.
        observer: Who watches.
        rounds: The rounds so far, from a number on.
        evaluations: The evaluations so far.
        record: Keeps the metrics of a position on a split with them.
        round: Tries the next round; gives `Aborted` if that came to nothing.
        summarise: What came of the run.
        measure: Metrics of the model where it stands, on a split; None where there is no model.
        keep: Told the position after each round, keeps what shortens the way back to it.
        attempts: How often a round may come to nothing, one time after the other.
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
        """Runs the rounds that are left, with evaluations before, in between and after.

        It ends early where the tuning split has shown no new lowest loss for `patience`
        evaluations. With `keep` = best, each position that is the best so far is evaluated on the
        test split at once, so that nobody has to go back to it.

        Raises:
            RoundAborted: A round came to nothing too often.
            Diverged: A loss is not finite or has exploded; that round is not among the rounds.
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
        """Evaluates, where there is a model, unless that has been done."""
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
        f"round {number} came to nothing{times}: {reason}. Repair that, then start again to go on: "
        "every finished round is kept",
        round=number,
        attempts=attempts,
        reason=reason,
    )
