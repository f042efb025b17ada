"""A run's folder: the ledger, and what is derived from it for people and scripts."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hiso.core.replica import Replica
from hiso.errors import ProtocolError, RunConflict
from hiso.federation.ledger import Ledger, RoundRow
from hiso.federation.runfile import Evaluation

_KEEP = 2


class RunFolder:
    """Paths and derived files. Everything but the ledger can be deleted at will.

    ledger.sqlite   the run: identity, settings, records, replies, evaluations
    metrics.jsonl   a line per round and per evaluation, in order
    summary.json    what came of it, once the last round is done
    snapshots/      replicas, to shorten replay
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.sqlite"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.snapshots = path / "snapshots"

    def has_run(self) -> bool:
        """Whether a run has begun here; an empty ledger, as a kill may leave it, is none."""
        if not self.ledger.is_file():
            return False
        try:
            with closing(sqlite3.connect(self.ledger, timeout=60)) as db:
                return bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        except sqlite3.DatabaseError:
            return True  # something is there; opening it tells what

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other processes from running here; the system lifts the lock when one dies.

        Raises:
            RunConflict: Another process runs here.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunConflict(
                    f"another process is at work on the run in {self.path}: wait for it or stop it"
                ) from error
            yield
        finally:
            os.close(folder)

    def rewrite_metrics(self, ledger: Ledger) -> None:
        """Makes metrics.jsonl agree with the ledger, whatever a crash left behind."""
        lines = [(row.round, 1, round_line(row)) for row in ledger.rounds()]
        lines += [(e.position, 0, evaluation_line(e)) for e in ledger.evaluations()]
        ordered = sorted(lines, key=lambda line: line[:2])
        _write(self.metrics, "".join(json.dumps(line) + "\n" for _, _, line in ordered))

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json, whole or not at all."""
        _write(self.summary, json.dumps(summary, indent=2) + "\n")

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

    def save_snapshot(self, replica: Replica) -> Path:
        """Keeps the replica as it stands, at the log's end, and the one before; no others."""
        self.snapshots.mkdir(exist_ok=True)
        path = self.snapshots / f"position-{replica.position:08d}.safetensors"
        facts = {
            "position": str(replica.position),
            "chain": replica.chain.hex(),
            "digest": f"{replica.digest():016x}",
            "hyper": json.dumps(replica.hyper),
        }
        partial = self.snapshots / "snapshot.partial"
        save_file({"weights": replica.weights, **replica.state}, partial, metadata=facts)
        os.replace(partial, path)
        kept = sorted(self.snapshots.glob("position-*.safetensors"))
        last = kept.index(path) + 1
        for old in kept[: max(0, last - _KEEP)] + kept[last:]:  # too old, or of rounds set aside
            old.unlink()
        return path

    def restore_snapshot(self, replica: Replica, ledger: Ledger, last: int) -> int:
        """Restores the newest snapshot on the ledger's log up to `last`; its position, or 0.

        Raises:
            ProtocolError: The snapshot's content is not what its digest says.
        """
        for path in sorted(self.snapshots.glob("position-*.safetensors"), reverse=True):
            try:
                if _restore(path, replica, ledger, last):
                    return replica.position
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise _damaged(path) from error
        return 0


def round_line(row: RoundRow) -> dict[str, Any]:
    """A round as a line of metrics.jsonl."""
    return {
        "kind": "round",
        "round": row.round,
        "loss": row.loss,
        "clients": row.clients,
        "bytes_up": row.bytes_up,
        "bytes_down": row.bytes_down,
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


def _restore(path: Path, replica: Replica, ledger: Ledger, last: int) -> bool:
    """Restores a snapshot, if it lies on the log up to `last`."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        position, chain = int(facts["position"]), bytes.fromhex(facts["chain"])
        if position > last or ledger.chain_at(position) != chain:
            return False
        buffers: dict[str, torch.Tensor] = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    replica.restore(buffers, position, chain, json.loads(facts["hyper"]))
    if f"{replica.digest():016x}" != facts["digest"]:
        raise _damaged(path)
    return True


def _damaged(path: Path) -> ProtocolError:
    return ProtocolError(f"{path} is damaged: delete it, replay needs no snapshot")


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)
