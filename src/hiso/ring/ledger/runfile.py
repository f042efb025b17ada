"""The contents of a run's file besides the log: identity, settings, evaluations, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hiso.core.identity import Identity, canonical_json
from hiso.core.importing import import_method, is_path
from hiso.core.method.base import Method
from hiso.core.method.registry import METHODS
from hiso.core.plain import plain
from hiso.core.record import chain_root
from hiso.errors import HisoError, ProtocolError
from hiso.ring.ledger.schema import (
    Database,
    blob,
    check_seal,
    columns,
    create_file,
    integer,
    mapping,
    numbers,
    open_file,
    optional,
    parsed,
    read_file,
    real,
    seal,
    text,
)


@dataclass(frozen=True)
class Evaluation:
    """Metrics of the replica at a position of the log, on one split."""

    position: int
    split: str
    metrics: dict[str, float]


RENAMED = {"perturbations": "directions"}
"""Names of settings in files of hiso 0.1, with their present names."""


@dataclass(frozen=True)
class Change:
    """A setting that took a new value at a position of the log."""

    position: int
    key: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Owner:
    """The registered key that a client number belongs to.

    Attributes:
        key: The key's fingerprint, as `ssh-keygen -l` shows it.
        site: The name under which the key was registered.
    """

    key: str
    site: str

    def __str__(self) -> str:
        return f"{self.site} (key {self.key})"


@dataclass(frozen=True, eq=False)
class ReplyRow:
    """A valid reply to a committed round.

    Attributes:
        round: The round.
        client: The client.
        loss: Mean loss of the client's first batch of the round; None if it was not reported.
        scalars: The measured directional derivatives g, float32 [τ, P].
        curvature: κ, float32 [τ, P], or None.
        facts: What else the reply told, by name.
        set_aside: Why the reply was not used; None if it was used.
    """

    round: int
    client: int
    loss: float | None
    scalars: NDArray[np.float32]
    curvature: NDArray[np.float32] | None
    facts: dict[str, float]
    set_aside: str | None


class RunFile:
    """A run's file. Every writing method is one transaction, which is on the disk when it returns.

    Attributes:
        path: The file.
        facts: The identity as JSON, also if its method is unknown in this process.
        root: Chain hash of the empty log, `chain_root` of the identity's canonical text, 32 bytes.

    Raises:
        ProtocolError: The file is damaged: it does not contain what hiso wrote.
        StorageError: The disk is full, or the file cannot be read or written; everything committed
            before is kept. `close` may also raise this error.
        RunConflict: Another process has kept the file locked for a minute.
    """

    def __init__(self, db: Database, method: type[Method] | None = None) -> None:
        """Use `create`, `open` or `read`."""
        self.path, self._db, self._method = db.path, db, method
        with ExitStack() as stack:
            stack.enter_context(db)
            self.facts = db.one(mapping, "SELECT identity FROM run")
            self._identity = db.one(text, "SELECT identity FROM run")
            stack.pop_all()
        self.root = chain_root(self._identity.encode())

    @classmethod
    def create(cls, path: Path | str, identity: Identity, settings: Mapping[str, Any]) -> Self:
        """Starts the ledger of a new run. `settings` are plain JSON.

        Raises:
            RunConflict: The file exists already.
            SettingsError: A value is not JSON, or not finite.
        """
        texts = identity.text, canonical_json(settings, "settings")
        return cls(create_file(Path(path), *texts), type(identity.method))

    @classmethod
    def open(cls, path: Path | str, *, method: type[Method] | None = None) -> Self:
        """Opens the ledger of a run to continue it, or to read while another process writes.

        Args:
            path: The file.
            method: The class of the run's method, if it is your own and not registered.

        Raises:
            ProtocolError: There is no such file, or it is not a ledger of this format.
        """
        return cls(open_file(Path(path)), method)

    @classmethod
    def read(cls, path: Path | str, *, method: type[Method] | None = None) -> Self:
        """A copy of the ledger's present state: it never changes and cannot be written.

        Reading does not block writers and creates no files, so the medium may be read-only.

        Args:
            path: The file.
            method: As for `open`.

        Raises:
            ProtocolError: There is no such file, or it is not a ledger of this format.
        """
        return cls(read_file(Path(path)), method)

    def close(self) -> None:
        """Closes the file, which then holds the complete run; the ledger cannot be used any
        more.
        """
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._db.__exit__(kind, error, tb)

    @cached_property
    def identity(self) -> Identity:
        """The run's identity; it never changes.

        Raises:
            ProtocolError: This version of hiso cannot run this identity; see `Identity.parse`. Or
                its method, which the settings name by an import path, cannot be imported.
        """
        return Identity.parse(self._identity, self._method or self._imported())

    def _imported(self) -> type[Method] | None:
        """The method's class, if the settings have its import path and it is not registered
        yet.
        """
        made = self.facts.get("method")
        if isinstance(made, dict) and made.get("name") in METHODS:
            return None
        path = self.settings.get("method")
        if not isinstance(path, str) or not is_path(path):
            return None
        try:
            return type(import_method(path))
        except HisoError as error:
            raise ProtocolError(f"the method of {self.path} is not here: {error}") from error

    @property
    def run(self) -> str:
        """The run's id, the hex digits of `root`."""
        return self.root.hex()

    @property
    def settings(self) -> dict[str, Any]:
        """The current settings.

        Raises:
            ProtocolError: The settings are damaged.
        """
        check_seal(self._db)
        return _named_as_now(self._db.one(mapping, "SELECT settings FROM run"))

    @property
    def position(self) -> int:
        """Number of records, which is also the number of the next round."""
        return self._db.one(integer, "SELECT coalesce(max(round) + 1, 0) FROM records")

    def refuse(self, client: int | None, round: int | None, reason: str) -> None:
        """Stores a refused reply, with the client and round that it claims, if these are valid.

        The reason is stored as `plain` returns it.
        """
        with self._write() as db:
            db.insert("refusals", (client, round, plain(reason), time.time()))

    def refusals(self) -> list[tuple[int | None, int | None, str]]:
        """(client, round, reason) of every refused reply, oldest first."""
        kinds = columns(optional(integer), optional(integer), text)
        return self._db.rows(kinds, "SELECT client, round, reason FROM refusals ORDER BY rowid")

    def own(self, owners: Mapping[int, Owner]) -> None:
        """Stores the owner of each of these client numbers, unless it has one."""
        with self._write() as db:
            for client, owner in owners.items():
                row = (client, owner.key, owner.site, time.time())
                db.execute("INSERT OR IGNORE INTO owners VALUES (?, ?, ?, ?)", row)

    def owners(self) -> dict[int, Owner]:
        """The owner of each client number that has one."""
        query = "SELECT client, key, site FROM owners ORDER BY client"
        rows = self._db.rows(columns(integer, text, text), query)
        return {client: Owner(key, site) for client, key, site in rows}

    def release(self, client: int) -> Owner | None:
        """Lets another key claim a client number; returns its owner so far."""
        owner = self.owners().get(client)
        with self._write() as db:
            db.execute("DELETE FROM owners WHERE client = ?", (client,))
        return owner

    def mark_data(self, clients: Iterable[int], mark: str) -> list[int]:
        """Stores a mark of these clients' data; returns those that had another one before."""
        query = "SELECT client, mark, max(rowid) FROM data_marks GROUP BY client"
        rows = self._db.rows(lambda client, mark, _: (integer(client), text(mark)), query)
        before, position = dict(rows), self.position
        new = [client for client in clients if before.get(client) != mark]
        if new:
            with self._write() as db:
                for client in new:
                    db.insert("data_marks", (client, mark, position, time.time()))
        return [client for client in new if client in before]

    def data_changes(self) -> list[tuple[int, int]]:
        """(client, position of the log) whenever a client came back with other data."""
        query = "SELECT client, position FROM data_marks ORDER BY rowid"
        seen, changes = set[int](), list[tuple[int, int]]()
        for client, position in self._db.rows(columns(integer, integer), query):
            if client in seen:
                changes.append((client, position))
            seen.add(client)
        return changes

    def replies(self, start: int = 0, stop: int | None = None) -> Iterator[ReplyRow]:
        """Every valid reply to rounds `start` to `stop` (exclusive; by default the end of the
        log), by round, then client.
        """
        query = """
            SELECT round, client, loss, set_aside, facts, steps, directions, scalars, curvature
            FROM replies WHERE round >= ? AND round < ? ORDER BY round, client"""
        end = self.position if stop is None else stop
        return iter(self._db.rows(_reply_row, query, start, end))

    def record_evaluation(self, position: int, split: str, metrics: Mapping[str, float]) -> None:
        """Stores the metrics of the replica at `position`; replaces earlier ones of the same
        split.
        """
        row = (position, split, canonical_json(dict(metrics), "metrics"), time.time())
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?)", row)

    def evaluations(self) -> list[Evaluation]:
        """Every evaluation, by position, then split."""
        query = "SELECT position, split, metrics FROM evaluations ORDER BY position, split"
        rows = self._db.rows(columns(integer, text, numbers), query)
        return [Evaluation(*row) for row in rows]

    def change(self, settings: Mapping[str, Any]) -> list[Change]:
        """Merges changed settings into the current ones, and logs each that differs."""
        with self._write() as db:
            now, position, changes = self.settings, self.position, list[Change]()
            for key, new in settings.items():
                texts = tuple(canonical_json(value, key) for value in (now.get(key), new))
                if texts[0] != texts[1]:
                    changes.append(Change(position, key, now.get(key), json.loads(texts[1])))
                    db.insert("changes", (position, key, *texts, time.time()))
            merged = canonical_json({**now, **settings}, "settings")
            db.execute("UPDATE run SET settings = ?", (merged,))
            seal(db)
        return changes

    def changes(self) -> list[Change]:
        """Every change of a setting, oldest first."""
        query = "SELECT position, key, old, new FROM changes ORDER BY rowid"
        rows = self._db.rows(columns(integer, text, parsed, parsed), query)
        return [replace(c, key=RENAMED.get(c.key, c.key)) for c in (Change(*row) for row in rows)]

    @contextmanager
    def _write(self) -> Iterator[Database]:
        with self._db.transaction():
            yield self._db


def _named_as_now(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under their present names. `directions` once had the meaning of `per_client`."""
    values = dict(settings)
    if isinstance(shared := values.get("directions"), str):
        del values["directions"]
        values["per_client"] = shared == "per-client"
    return {RENAMED.get(key, key): value for key, value in values.items()}


def _reply_row(
    round: Any, client: Any, loss: Any, reason: Any, facts: Any, *arrays: Any
) -> ReplyRow:
    steps, directions, *values = arrays

    def table(data: Any) -> NDArray[np.float32]:
        flat = np.frombuffer(blob(data), "<f4").astype(np.float32)
        return flat.reshape(integer(steps), integer(directions))

    scalars, curvature = values
    return ReplyRow(
        round=integer(round),
        client=integer(client),
        loss=optional(real)(loss),
        scalars=table(scalars),
        curvature=optional(table)(curvature),
        facts={} if facts is None else numbers(facts),
        set_aside=optional(text)(reason),
    )
