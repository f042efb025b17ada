"""A run's folder: the ledger, and what is derived from it for people and scripts."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hiso.core.methods import METHODS
from hiso.core.probe import passes
from hiso.errors import RunConflict, StorageError
from hiso.federation.ledger import Ledger, RoundRow
from hiso.federation.runfile import Evaluation
from hiso.federation.schema import has_tables

log = logging.getLogger(__name__)


class RunFolder:
    """Paths and derived files. Everything but the ledger can be deleted at will.

    A method that writes raises `StorageError` where it cannot; the ledger then has all that was
    to be written, and the next start writes it.

    ledger.sqlite   the run: identity, settings, records, replies, evaluations
    metrics.jsonl   a line per round and per evaluation, in order
    summary.json    what came of it, once the last round is done
    snapshots/      replicas, to shorten replay
    track/          what trackers keep, and what they have been told
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.sqlite"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.snapshots = path / "snapshots"

    def has_run(self) -> bool:
        """Whether a run has begun here; an empty ledger, as a kill may leave it, is none."""
        return self.ledger.is_file() and has_tables(self.ledger)

    def lock(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Keeps other processes from running here.

        Raises:
            RunConflict: Another process runs here, and still does after `patience` seconds.
        """
        busy = f"another process is at work on the run in {self.path}: wait for it or stop it"
        return locked(self.path, busy, patience)

    def rewrite_metrics(self, ledger: Ledger) -> None:
        """Makes metrics.jsonl agree with the ledger, whatever a crash left behind."""
        self.write_metrics(metrics_lines(ledger))

    def write_metrics(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes metrics.jsonl anew, whole or not at all."""
        with storing(self.metrics):
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in lines))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with storing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, whole or not at all."""
        with storing(self.summary):
            write_text(self.summary, json.dumps(summary, indent=2) + "\n")

    def keep_summary(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Writes summary.json unless it tells of the same log and settings; gives what is there."""
        old = self.read_summary()
        same = ("chain", "settings", "metrics_before", "metrics_after")
        if old and all(old.get(key) == summary[key] for key in same):
            return old
        self.write_summary(summary)
        return summary

    def read_summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None if it is missing or cannot be read."""
        try:
            return json.loads(self.summary.read_text())
        except (OSError, ValueError):
            return None


@contextmanager
def locked(folder: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Holds a folder for this process; the system lifts the lock when the process dies.

    Raises:
        RunConflict: Another process holds it, and still does after `patience` seconds; says `busy`.
    """
    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + patience
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise RunConflict(busy) from error
                log.warning(busy)
                time.sleep(1)
        yield
    finally:
        os.close(handle)


def round_lines(ledger: Ledger, start: int = 0) -> list[dict[str, Any]]:
    """The rounds from `start` on as lines of metrics.jsonl.

    `passes` counts the forward passes of one client's batch, over all clients that count.
    """
    settled = ledger.settings.get("scheme")
    method = METHODS.get(ledger.facts["method"]["name"])  # None: one of the user's own
    scores = method is not None and method.needs == "scores"
    schemes = [change for change in ledger.changes() if change.key == "scheme"]
    lines: list[dict[str, Any]] = []
    for row, record in zip(ledger.rounds(start), ledger.records(start), strict=True):
        later = [change.old for change in schemes if change.position > row.round]
        scheme = (later or [settled])[0] or "forward"
        directions = int(record.direction.max()) + 1
        a_step = passes(directions, scheme, curvature=record.curvature is not None, scores=scores)
        lines.append(round_line(row, len(row.clients) * record.steps * a_step))
    return lines


def metrics_lines(ledger: Ledger) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, in order."""
    return in_order(round_lines(ledger), ledger.evaluations())


def in_order(
    rounds: Iterable[dict[str, Any]], evaluations: Iterable[Evaluation]
) -> list[dict[str, Any]]:
    """Lines of rounds and of evaluations; those at position r come before round r."""
    lines = [(line["round"], 1, line) for line in rounds]
    lines += [(e.position, 0, evaluation_line(e)) for e in evaluations]
    return [line for _, _, line in sorted(lines, key=lambda line: line[:2])]


def round_line(row: RoundRow, passes: int) -> dict[str, Any]:
    """A round as a line of metrics.jsonl."""
    return {
        "kind": "round",
        "round": row.round,
        "loss": row.loss,
        "clients": row.clients,
        "bytes_up": row.bytes_up,
        "bytes_down": row.bytes_down,
        "passes": passes,
        "seconds": row.seconds.get("round"),
        "forward_seconds": row.seconds.get("forward"),
    }


def evaluation_line(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as a line of metrics.jsonl."""
    return {
        "kind": "evaluation",
        "position": evaluation.position,
        "split": evaluation.split,
        **dict(sorted(evaluation.metrics.items())),
    }


def write_text(path: Path, text: str) -> None:
    """Writes a file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # it has become `path`, or is of no use


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Around work that writes `path`, by safetensors for one.

    Raises:
        StorageError: The disk is full, or there is no writing there.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError.of(path, error) from error
