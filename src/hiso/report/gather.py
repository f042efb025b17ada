"""What the folders of runs hold, read into plain data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.core.identity import Identity
from hiso.core.record import Record
from hiso.errors import HisoError, ProtocolError, SettingsError
from hiso.federation.ledger import Ledger
from hiso.federation.protocol import paper_bytes
from hiso.federation.runfile import Change, Evaluation, ReplyRow
from hiso.run.folder import RunFolder, metrics_lines

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Log:
    """What only a ledger tells.

    Attributes:
        identity: The run's identity; None if its method is not known here.
        records: Every record.
        replies: Every valid reply to a round.
        changes: Settings that took a new value.
    """

    identity: Identity | None
    records: list[Record]
    replies: list[ReplyRow]
    changes: list[Change]

    @property
    def paper_bytes(self) -> int:
        """The papers' count, 2·R·τ·P·4."""
        return sum(paper_bytes(1, r.steps, int(r.direction.max()) + 1) for r in self.records)


@dataclass(frozen=True, eq=False)
class Run:
    """A run of R rounds so far.

    Attributes:
        path: Its folder.
        settings: The settings in force; empty if nothing tells them yet.
        summary: The content of summary.json; empty while the run goes on.
        loss: Mean loss of each round's clients, float64 [R]; NaN where nobody told it.
        seconds: Wall time of each round, float64 [R]; NaN where it was not measured.
        spent: What had been spent when position 0..R was reached, float64 [R + 1], by kind:
            `rounds`, `bytes` (up and down, all clients), and `passes` (clients' forward passes of
            one batch) where every round tells them.
        traffic: Bytes (up, down) so far; with a ledger, those of aborted attempts too.
        clients: The clients that counted in each round.
        evaluations: Metrics by position and split.
        log: What the ledger tells; None for a run without one.
    """

    path: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
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
    """Metrics that were taken on the tuning or the test split: accuracy first, the loss last."""
    evaluations = [e for run in runs for e in run.evaluations if e.split in ("dev", "test")]
    names = {name for evaluation in evaluations for name in evaluation.metrics}
    return sorted(names, key=lambda name: (name == "loss", name != "accuracy", name))


def in_words(metric: str) -> str:
    """A metric's name for people."""
    return "F1" if metric == "f1" else metric.replace("_", " ")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads the folders of runs, finished or not. A run needs a ledger, or else metrics.jsonl.

    Raises:
        SettingsError: There is none, or one is named twice.
        ProtocolError: A folder holds no run, or a file in it is damaged; names all of them.
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
            lines, settings, traffic = metrics_lines(ledger), ledger.settings, ledger.traffic()
            replies, changes = list(ledger.replies()), ledger.changes()
            log = Log(_identity(ledger), ledger.records(), replies, changes)
    elif folder.metrics.is_file():
        lines = list(_lines(folder.metrics))
    else:
        raise ProtocolError(
            f"{path} holds no run: there is neither ledger.sqlite nor metrics.jsonl. "
            "Name the folder of a run."
        )
    try:
        rounds = [line for line in lines if line["kind"] == "round"]
        if [line["round"] for line in rounds] != list(range(len(rounds))):
            raise ProtocolError(f"the rounds of {folder.metrics} do not ascend from 0 without gaps")
        summary = folder.read_summary() or {}
        if summary.get("rounds") != len(rounds):
            summary = {}  # of an earlier end, or of none
        return Run(
            path=path,
            settings=settings or summary.get("settings", {}),
            summary=summary,
            loss=_column(rounds, "loss"),
            seconds=_column(rounds, "seconds"),
            spent=dict(_spent(rounds)),
            traffic=traffic or (_sum(rounds, "bytes_up"), _sum(rounds, "bytes_down")),
            clients=[line["clients"] for line in rounds],
            evaluations=[_evaluation(line) for line in lines if line["kind"] == "evaluation"],
            log=log,
        )
    except (KeyError, TypeError) as error:
        raise ProtocolError(
            f"a line of {folder.metrics} is not as hiso writes it: {error!r}"
        ) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; the last one may be half written."""
    texts = path.read_text().split("\n")
    for number, text in enumerate(texts, 1):
        try:
            if text:
                yield json.loads(text)
        except ValueError as error:
            if number < len(texts):
                raise ProtocolError(f"{path}, line {number} is not JSON: {error}") from error


def _evaluation(line: Mapping[str, Any]) -> Evaluation:
    metrics = {k: v for k, v in line.items() if k not in ("kind", "position", "split")}
    return Evaluation(line["position"], line["split"], metrics)


def _column(rounds: Sequence[Mapping[str, Any]], key: str) -> Floats:
    return np.array([np.nan if (v := line.get(key)) is None else v for line in rounds], np.float64)


def _sum(rounds: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(line[key] for line in rounds)


def _spent(rounds: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Floats]]:
    def total(values: Floats) -> Floats:
        return np.concatenate([[0.0], np.cumsum(values)])

    yield "rounds", np.arange(len(rounds) + 1, dtype=np.float64)
    yield "bytes", total(_column(rounds, "bytes_up") + _column(rounds, "bytes_down"))
    passes = _column(rounds, "passes")
    if rounds and not np.isnan(passes).any():
        yield "passes", total(passes)
