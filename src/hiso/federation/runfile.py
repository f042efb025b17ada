"""What a run's file holds beside the log: identity, settings, evaluations, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hiso.core.record import chain_root
from hiso.federation.schema import canonical_json, create_file, open_file


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the replica at a position of the log, on one split."""

    position: int
    split: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Change:
    """A setting that took a new value at a position of the log."""

    position: int
    key: str
    old: Any
    new: Any


@dataclass(frozen=True, eq=False)
class ReplyRow:
    """A valid reply to a committed round.

    Attributes:
        round: The round.
        client: The client.
        loss: Mean loss of the client's first batch of the round.
        scalars: The directional derivatives g that it measured, float32 [τ, P].
        set_aside: Why it does not count; None if it does.
    """

    round: int
    client: int
    loss: float
    scalars: NDArray[np.float32]
    set_aside: str | None


class RunFile:
    """A run's file. A method that writes is one transaction, on the disk when it returns.

    Attributes:
        path: The file.
        identity: What makes the run this run; never changes.
        root: Chain hash of the empty log, `chain_root` of the identity's canonical JSON, 32 bytes.
    """

    def __init__(self, path: Path, db: Connection) -> None:
        """Use `create` or `open`."""
        (identity,) = db.execute("SELECT identity FROM run").fetchone()
        self.path, self._db = path, db
        self.identity: dict[str, Any] = json.loads(identity)
        self.root = chain_root(identity.encode())

    @classmethod
    def create(
        cls, path: Path | str, identity: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Self:
        """Starts the ledger of a new run. `identity` and `settings` are plain JSON.

        Raises:
            RunConflict: The file exists already.
            SettingsError: Something is not JSON, or not finite.
        """
        texts = canonical_json(identity, "identity"), canonical_json(settings, "settings")
        return cls(Path(path), create_file(Path(path), *texts))

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Opens the ledger of a run to go on, or to read while another process goes on.

        Raises:
            ProtocolError: There is no such file, or it is not a ledger of this format.
        """
        return cls(Path(path), open_file(Path(path)))

    def close(self) -> None:
        """Closes the file; the ledger cannot be used any more."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def run(self) -> str:
        """The run's id, the hex digits of `root`."""
        return self.root.hex()

    @property
    def settings(self) -> dict[str, Any]:
        """The settings in force."""
        return json.loads(self._one("SELECT settings FROM run"))

    @property
    def position(self) -> int:
        """Number of records, which is the next round."""
        return self._one("SELECT coalesce(max(round) + 1, 0) FROM records")

    def refuse(self, client: int | None, round: int | None, reason: str) -> None:
        """Notes a reply that was refused; client and round as it claimed, where it made sense."""
        with self._write() as db:
            insert(db, "refusals", (client, round, reason, time.time()))

    def refusals(self) -> list[tuple[int | None, int | None, str]]:
        """(client, round, reason) of every refused reply, oldest first."""
        return list(self._db.execute("SELECT client, round, reason FROM refusals ORDER BY rowid"))

    def replies(self) -> Iterator[ReplyRow]:
        """Every valid reply to a committed round, by round, then client."""
        query = """
            SELECT round, client, loss, scalars, steps, directions, set_aside
            FROM replies ORDER BY round, client"""
        for number, client, loss, data, steps, directions, reason in self._db.execute(query):
            scalars = np.frombuffer(data, "<f4").astype(np.float32).reshape(steps, directions)
            yield ReplyRow(number, client, loss, scalars, reason)

    def record_evaluation(self, position: int, split: str, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of the replica at `position`; a second time replaces the first."""
        row = (position, split, canonical_json(dict(metrics), "metrics"), time.time())
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", row)

    def evaluations(self) -> list[Evaluation]:
        """Every evaluation, by position, then split."""
        query = "SELECT position, split, metrics FROM evaluations ORDER BY position, split"
        return [Evaluation(p, split, json.loads(m)) for p, split, m in self._db.execute(query)]

    def change(self, settings: Mapping[str, Any]) -> list[Change]:
        """Merges changed settings into those in force, and logs each that differs."""
        with self._write() as db:
            now, position, changes = self.settings, self.position, list[Change]()
            for key, new in settings.items():
                texts = tuple(canonical_json(value, key) for value in (now.get(key), new))
                if texts[0] != texts[1]:
                    changes.append(Change(position, key, now.get(key), json.loads(texts[1])))
                    insert(db, "changes", (position, key, *texts, time.time()))
            merged = canonical_json({**now, **settings}, "settings")
            db.execute("UPDATE run SET settings = ?", (merged,))
        return changes

    def changes(self) -> list[Change]:
        """Every change of a setting, oldest first."""
        query = "SELECT position, key, old, new FROM changes ORDER BY rowid"
        rows = self._db.execute(query)
        return [Change(p, key, json.loads(old), json.loads(new)) for p, key, old, new in rows]

    def _one(self, query: str, *values: Any) -> Any:
        row = self._db.execute(query, values).fetchone()
        return None if row is None else row[0]

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db


def insert(db: Connection, table: str, row: tuple[Any, ...]) -> None:
    """Appends a row to a table."""
    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
