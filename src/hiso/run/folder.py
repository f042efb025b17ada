"""A run's folder: the ledger, and files derived from it for readers and scripts."""

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
    """Paths and derived files. Everything except the ledger may be deleted at any time.

    Writing methods raise `StorageError` if they cannot write; the ledger then still has all data,
    and the next start writes the file.

    ledger.sqlite   the run: identity, settings, records, replies, evaluations
    metrics.jsonl   one line per round and per evaluation, in order
    summary.json    the final figures, after the last round
    snapshots/      replicas, to shorten replay
    track/          files of trackers, and a note of what was sent to them
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.sqlite"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.snapshots = path / "snapshots"

    def has_run(self) -> bool:
        """Whether the folder holds a run; an empty ledger, which a kill may leave, is not a run."""
        return self.ledger.is_file() and has_tables(self.ledger)

    def lock(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Prevents other processes from running in this folder.

        Raises:
            RunConflict: Another process still runs here after `patience` seconds.
        """
        busy = f"another process is at work on the run in {self.path}: wait for it or stop it"
        return locked(self.path, busy, patience)

    def write_metrics(self, rounds: Iterable[Round], evaluations: Iterable[Evaluation]) -> None:
        """Writes a new metrics.jsonl, completely or not at all."""
        with storing(self.metrics):
            write_text(self.metrics, "".join(map(_text, in_order(rounds, evaluations))))

    def append_metrics(self, line: Round | Evaluation) -> None:
        """Adds a line to metrics.jsonl."""
        with storing(self.metrics), self.metrics.open("a") as file:
            file.write(_text(line))

    def read_metrics(self) -> tuple[list[Round], list[Evaluation]]:
        """The content of metrics.jsonl, empty if there is none. The last line may be incomplete.

        Raises:
            ProtocolError: A line is invalid, or the rounds have gaps; the message says which.
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
        """The number of rounds in metrics.jsonl, counted quickly; 0 if there is no such file."""
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
        """Writes summary.json, completely or not at all."""
        with storing(self.summary):
            write_text(self.summary, json.dumps(encode_summary(summary), indent=2) + "\n")

    def keep_summary(self, summary: Summary) -> Summary:
        """Writes summary.json unless it is about the same log and settings; returns its content."""
        old = self.read_summary()
        if old is not None and _log(old) == _log(summary):
            return old
        self.write_summary(summary)
        return summary

    def read_summary(self) -> Summary | None:
        """The content of summary.json; None if it is missing or invalid."""
        try:
            return decode_summary(json.loads(self.summary.read_text()))
        except (OSError, ValueError, ProtocolError):
            return None

    def read_digest(self, chain: bytes) -> int | None:
        """The digest in summary.json, if that is about the log with this chain hash."""
        summary = self.read_summary()
        digest = None if summary is None or summary.chain != chain.hex() else summary.digest
        return None if digest is None or not _DIGEST.fullmatch(digest) else int(digest, 16)


@contextmanager
def locked(folder: Path, busy: str, patience: float = 0.0) -> Iterator[None]:
    """Locks a folder for this process; the system releases the lock when the process ends.

    Raises:
        RunConflict: Another process still holds the lock after `patience` seconds; the message is
            `busy`.
    """
    handle, end = os.open(folder, os.O_RDONLY), time.monotonic() + patience
    said = False
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    raise RunConflict(busy) from error
                if not said:
                    log.warning("%s; waiting %.0f s", busy, patience)
                said = True
                time.sleep(1)
        yield
    finally:
        os.close(handle)


def _text(line: Round | Evaluation) -> str:
    return json.dumps(encode_line(line)) + "\n"


def _log(summary: Summary) -> tuple[Any, ...]:
    """The fields that are equal in all summaries of one log with the same settings."""
    return summary.chain, summary.settings, summary.metrics_before, summary.metrics_after


def write_text(path: Path, text: str) -> None:
    """Writes a file, completely or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # it was renamed to `path`, or is useless


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Translates errors of code that writes `path`, for example with safetensors.

    Raises:
        StorageError: The disk is full, or `path` is not writable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StorageError.of(path, error) from error
