"""Reads the folders of runs into plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.core.identity import Identity
from hiso.core.record import Record
from hiso.errors import HisoError, ProtocolError, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Change, Evaluation, ReplyRow
from hiso.ring.messages import paper_bytes
from hiso.run.folder import RunFolder
from hiso.run.inspect import troubled
from hiso.run.results import Round, Summary, rounds_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Log:
    """The data that only a ledger has.

    Attributes:
        identity: The run's identity; None if its method is unknown in this process.
        records: Every record.
        replies: Every valid reply to a round.
        changes: Changes of settings.
        troubled: The clients with whom something was wrong: see `hiso.run.inspect.troubled`.
    """

    identity: Identity | None
    records: list[Record]
    replies: list[ReplyRow]
    changes: list[Change]
    troubled: list[dict[str, int | None]]

    @property
    def paper_bytes(self) -> int:
        """The papers' count, 2·R·τ·P·4."""
        return sum(paper_bytes(1, r.steps, int(r.direction.max()) + 1) for r in self.records)


@dataclass(frozen=True, eq=False)
class Run:
    """A run of R rounds so far.

    Attributes:
        path: Its folder.
        settings: The current settings; empty if they are not known yet.
        summary: The run's summary; None while the run is active.
        loss: Mean loss of each round's clients, float64 [R]; NaN where it is not known.
        seconds: Wall time of each round, float64 [R]; NaN where it was not measured.
        spent: The cost of reaching each position 0..R, float64 [R + 1], by kind: `rounds`, `bytes`
            (up and down, all clients), and `passes` (clients' forward passes of one batch) if they
            are known for every round.
        traffic: Bytes (up, down) so far; with a ledger, aborted attempts are included.
        clients: The clients whose replies were used in each round.
        evaluations: Metrics by position and split.
        log: Data from the ledger; None for a run without a ledger.
    """

    path: Path
    settings: Mapping[str, Any]
    summary: Summary | None
    loss: Floats
    seconds: Floats
    spent: Mapping[str, Floats]
    traffic: tuple[int, int]
    clients: list[list[int]]
    evaluations: list[Evaluation]
    log: Log | None

    @property
    def rounds(self) -> int:
        """Number of rounds so far, R."""
        return len(self.clients)

    def metric(self, split: str, name: str) -> dict[float, float]:
        """A metric by position."""
        return {
            e.position: e.metrics[name]
            for e in self.evaluations
            if e.split == split and name in e.metrics and e.position <= self.rounds
        }


def metric_names(runs: Sequence[Run]) -> list[str]:
    """Metrics measured on the tuning or the test split: accuracy first, the loss last."""
    evaluations = [e for run in runs for e in run.evaluations if e.split in ("dev", "test")]
    names = {name for evaluation in evaluations for name in evaluation.metrics}
    return sorted(names, key=lambda name: (name == "loss", name != "accuracy", name))


def in_words(metric: str) -> str:
    """A metric's name for display."""
    return "F1" if metric == "f1" else metric.replace("_", " ")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads the folders of runs, finished or not. Each needs a ledger or metrics.jsonl.

    Raises:
        SettingsError: No run is named, or one is named twice.
        ProtocolError: A folder holds no run, or a file in it is damaged; lists all of them.
    """
    if not paths:
        raise SettingsError("a report needs at least one run: name its folder")
    if twice := [str(path) for path, count in Counter(paths).items() if count > 1]:
        raise SettingsError(f"named twice: {', '.join(twice)}. Name each run once.")
    runs: list[Run] = []
    problems: list[str] = []
    for path in paths:
        try:
            runs.append(_read(path))
        except HisoError as error:
            problems.append(str(error))
    if problems:
        raise ProtocolError("\n".join(problems))
    return runs


def _identity(ledger: Ledger) -> Identity | None:
    try:
        return ledger.identity
    except ProtocolError:
        return None


def _read(path: Path) -> Run:
    folder = RunFolder(path)
    log = settings = traffic = None
    if folder.has_run():
        with Ledger.read(folder.ledger) as ledger:
            ledger.verify()
            rounds, evaluations = rounds_of(ledger), ledger.evaluations()
            settings, traffic = ledger.settings, ledger.traffic()
            replies, changes = list(ledger.replies()), ledger.changes()
            log = Log(_identity(ledger), ledger.records(), replies, changes, troubled(ledger))
    elif folder.metrics.is_file():
        rounds, evaluations = folder.read_metrics()
    else:
        raise ProtocolError(
            f"{path} holds no run: there is neither ledger.sqlite nor metrics.jsonl. "
            "Name the folder of a run."
        )
    summary = folder.read_summary()
    if summary is not None and summary.rounds != len(rounds):
        summary = None  # from an earlier end of the run
    return Run(
        path=path,
        settings=settings or (summary.settings if summary else {}),
        summary=summary,
        loss=_column(done.loss for done in rounds),
        seconds=_column(done.seconds for done in rounds),
        spent=dict(_spent(rounds)),
        traffic=traffic
        or (sum(done.bytes_up for done in rounds), sum(done.bytes_down for done in rounds)),
        clients=[done.clients for done in rounds],
        evaluations=evaluations,
        log=log,
    )


def _column(values: Iterable[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _spent(rounds: Sequence[Round]) -> Iterator[tuple[str, Floats]]:
    def total(values: Iterable[float | None]) -> Floats:
        return np.concatenate([[0.0], np.cumsum(_column(values))])

    yield "rounds", np.arange(len(rounds) + 1, dtype=np.float64)
    yield "bytes", total(done.bytes_up + done.bytes_down for done in rounds)
    passes = total(done.passes for done in rounds)
    if rounds and not np.isnan(passes).any():
        yield "passes", passes
