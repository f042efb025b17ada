"""A run's folder: the ledger, and what is derived from it for people and scripts."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hiso.errors import ProtocolError, RunConflict, StorageError
from hiso.ring.ledger.runfile import Evaluation
from hiso.ring.ledger.schema import has_tables
from hiso.run.results import (
    Round,
    Summary,
    decode_line,
    decode_summary,
    encode_line,
    encode_summary,
    in_order,
)

log = logging.getLogger(__name__)
_DIGEST = re.compile("[0-9a-f]{16}")


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

    def write_metrics(self, rounds: Iterable[Round], evaluations: Iterable[Evaluation]) -> None:
        """Writes metrics.jsonl anew, whole or not at all."""
        with storing(self.metrics):
            write_text(self.metrics, "".join(map(_text, in_order(rounds, evaluations))))

    def append_metrics(self, line: Round | Evaluation) -> None:
        """Adds a line to metrics.jsonl."""
        with storing(self.metrics), self.metrics.open("a") as file:
            file.write(_text(line))

    def read_metrics(self) -> tuple[list[Round], list[Evaluation]]:
        """What metrics.jsonl tells; nothing if it is missing. The last line may be half written.

        Raises:
            ProtocolError: A line is not as hiso writes it, or the rounds have gaps; says which.
            StorageError: The file cannot be read.
        """
        if not self.metrics.is_file():
            return [], []
        with storing(self.metrics):
            texts = self.metrics.read_text(errors="replace").split("\n")
        lines = [self._line(text, n) for n, text in enumerate(texts[:-1], 1) if text]
        with suppress(ProtocolError):
            lines += [self._line(text, len(texts)) for text in texts[-1:] if text]
        rounds = [line for line in lines if isinstance(line, Round)]
        if [line.round for line in rounds] != list(range(len(rounds))):
            raise ProtocolError(f"the rounds of {self.metrics} do not ascend from 0 without gaps")
        return rounds, [line for line in lines if isinstance(line, Evaluation)]

    def count_rounds(self) -> int:
        """The rounds in metrics.jsonl so far, quickly; 0 if it is missing."""
        try:
            lines = self.metrics.read_text(errors="replace").splitlines()
        except OSError:
            return 0
        return sum(line.startswith('{"kind": "round"') for line in lines)

    def _line(self, text: str, number: int) -> Round | Evaluation:
        where = f"{self.metrics}, line {number}"
        try:
            return decode_line(json.loads(text))
        except ValueError as error:
            raise ProtocolError(f"{where} is not JSON: {error}") from error
        except ProtocolError as error:
            raise ProtocolError(f"{where} is not as hiso writes it: {error}") from error

    def write_summary(self, summary: Summary) -> None:
        """Writes summary.json, whole or not at all."""
        with storing(self.summary):
            write_text(self.summary, json.dumps(encode_summary(summary), indent=2) + "\n")

    def keep_summary(self, summary: Summary) -> Summary:
        """Writes summary.json unless it tells of the same log and settings; gives what is there."""
        old = self.read_summary()
        if old is not None and _log(old) == _log(summary):
            return old
        self.write_summary(summary)
        return summary

    def read_summary(self) -> Summary | None:
        """What summary.json tells; None if it is missing, or not as hiso writes it."""
        try:
            return decode_summary(json.loads(self.summary.read_text()))
        except (OSError, ValueError, ProtocolError):
            return None

    def read_digest(self, chain: bytes) -> int | None:
        """The digest in summary.json, if it tells of the log with this chain hash."""
        summary = self.read_summary()
        digest = None if summary is None or summary.chain != chain.hex() else summary.digest
        return None if digest is None or not _DIGEST.fullmatch(digest) else int(digest, 16)


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


def _text(line: Round | Evaluation) -> str:
    return json.dumps(encode_line(line)) + "\n"


def _log(summary: Summary) -> tuple[Any, ...]:
    """What is the same in all summaries of one log with the same settings."""
    return summary.chain, summary.settings, summary.metrics_before, summary.metrics_after


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
