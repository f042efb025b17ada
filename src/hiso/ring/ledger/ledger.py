"""The ledger: the log of a run, and the replies from which it was made, in one SQLite file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from hiso.core.identity import Identity, canonical_json
from hiso.core.method.derived import Derived, State, remember_all
from hiso.core.record import CHANGES_AT, Record, chain_of, round_of
from hiso.errors import ProtocolError
from hiso.ring.accept.cuts import Cut, sizes
from hiso.ring.accept.divergence import median_loss
from hiso.ring.accept.quarantine import Fault, Kind
from hiso.ring.ledger.runfile import RunFile
from hiso.ring.ledger.schema import (
    ROLLED_BACK,
    Database,
    blob,
    check_pages,
    check_seal,
    columns,
    damaged,
    hexadecimal,
    integer,
    numbers,
    optional,
    real,
    text,
)
from hiso.ring.messages import SCALAR_BYTES, Reply


@dataclass(frozen=True)
class RoundRow:
    """A committed round, for display.

    Attributes:
        round: The round.
        loss: Mean loss of the valid clients before the round's step; None if none reported it, and
            in a client's copy of the log.
        bytes_up: Bytes of scalars sent up.
        bytes_down: Bytes of scalars sent down, catch-up included.
        seconds: Wall time by name, as measured by the engine.
        clients: Clients whose replies were used, ascending.
        set_aside: For each other client, why its reply was not used.
        time: Unix time of the commit.
    """

    round: int
    loss: float | None
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    clients: list[int]
    set_aside: dict[int, str]
    time: float


class Ledger(RunFile):
    """The log of a run. One process writes; any number may read at the same time.

    Position r is the state before record r: position 0 is the empty log, `position` is the whole
    log. Every writing method is one transaction, which is on the disk when the method returns.

    Example:
        >>> with Ledger.create(path, Identity(method=HiSo(), seed=0), {"rounds": 100}) as ledger:
        ...     ledger.position
        0
    """

    def chain_at(self, round: int) -> bytes:
        """Chain hash of the log before `round`, in 0..position; 32 bytes.

        Raises:
            ProtocolError: The log is not that long.
        """
        if round == 0:
            return self.root
        chain = self._db.first(blob, "SELECT chain FROM records WHERE round = ?", round - 1)
        if chain is None:
            raise ProtocolError(f"the log has positions 0..{self.position}, not {round}")
        return chain

    def check_replica(self, identity: Identity, position: int, chain: bytes) -> None:
        """Checks that a replica belongs to this run and has folded the records of this log.

        Args:
            identity: The replica's identity.
            position: The replica's position.
            chain: The replica's chain hash at this position.

        Raises:
            ProtocolError: The replica does not belong here; the message says what differs.
        """
        if identity.root != self.root:
            different = "; ".join(self.identity.differences(identity))
            raise ProtocolError(
                f"the replica belongs to another run than {self.path} ({different}; first the "
                "ledger's, "
                "then the replica's): make it from ledger.identity"
            )
        if self.chain_at(position) != chain:
            raise ProtocolError(
                f"the replica has folded other records than {self.path} has before position "
                f"{position}: make a new one from ledger.identity, and replay the log"
            )

    def digest_at(self, round: int) -> int | None:
        """The quorum's digest of the replica before `round`; None if no quorum has agreed on it
        yet.
        """
        query = "SELECT digest FROM records WHERE round = ?"
        return self._db.first(optional(hexadecimal), query, round)

    def last_digest(self, until: int | None = None) -> tuple[int, int] | None:
        """The last position (up to `until`) whose digest is known, and that digest."""
        query = "SELECT max(round), digest FROM records WHERE digest NOT NULL AND round <= ?"
        kinds = columns(optional(integer), optional(hexadecimal))
        position, known = self._db.one(kinds, query, self.position if until is None else until)
        return None if position is None else (position, known)

    def records(self, start: int = 0, stop: int | None = None) -> list[Record]:
        """Records `start` to `stop` (exclusive; by default the end of the log), in order.

        Raises:
            ProtocolError: A record is malformed or missing.
        """
        query = "SELECT round, bytes FROM records WHERE round >= ? AND round < ? ORDER BY round"
        stop = self.position if stop is None else min(stop, self.position)
        rows = self._db.rows(columns(integer, Record.from_bytes), query, start, stop)
        if [number for number, _ in rows] != list(range(max(start, 0), stop)):
            raise damaged(self.path, f"some of the rounds {start} to {stop - 1} are missing")
        return [record for _, record in rows]

    def each_record(self, start: int = 0, stop: int | None = None) -> Iterator[Record]:
        """The same records as `records`, with few of them in memory at a time."""
        stop = self.position if stop is None else min(stop, self.position)
        for first in range(max(start, 0), stop, _CHUNK):
            yield from self.records(first, min(first + _CHUNK, stop))

    def each_bytes(self) -> Iterator[bytes]:
        """The bytes of every record, in order."""
        for _, data, _ in self._stored():
            yield blob(data)

    def hyper_at(self, position: int | None = None) -> dict[str, float]:
        """Hyper-parameters before the record at `position`, by default before the next record.

        Raises:
            ProtocolError: The identity has no method with hyper-parameters.
        """
        try:
            stored = self.facts["method"]["hyper"].items()
            hyper = {name: float(value) for name, value in stored}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProtocolError(
                f'the identity in {self.path} names no "method": {{"hyper": …}} of numbers '
                f"({error!r}): it was not made for a federated run, or is damaged"
            ) from error
        query = f"""
            SELECT bytes FROM records WHERE round < ? AND {_HAS_CHANGES} ORDER BY round"""
        end = self.position if position is None else position
        for record in self._db.rows(Record.from_bytes, query, end):
            hyper |= record.changes
        return hyper

    def derived_at(self, what: Derived[State], start: State, position: int | None = None) -> State:
        """The values derived from the records before `position`, by default from all records."""
        return remember_all(what, self.each_record(0, position), start)

    def commit(
        self,
        record: Record,
        replies: Sequence[Reply],
        *,
        digest: int,
        set_aside: Mapping[int, str],
        loss: float | None,
        bytes_up: int,
        bytes_down: int,
        seconds: Mapping[str, float],
        cuts: Sequence[Cut] = (),
        faults: Mapping[int, Kind] | None = None,
    ) -> None:
        """Appends the record of a round, with its replies.

        Args:
            record: The next record.
            replies: All valid replies of the round; their clients' position is now this round.
            digest: The quorum's digest of the replica before the record, unsigned 64 bits.
            set_aside: For each client whose reply was not used, the reason.
            loss: Mean loss of the clients whose replies were used; None if it is not known.
            bytes_up: Bytes of scalars sent up.
            bytes_down: Bytes of scalars sent down, catch-up included.
            seconds: Wall time by name.
            cuts: What counted for less than a reply said.
            faults: Clients at fault, and how.

        Raises:
            ProtocolError: The record is not the next one of this log; nothing was written.
        """
        spent = canonical_json(dict(seconds), "seconds")
        with self._write() as db:
            attempt = self.attempt(record.round)
            self._append(db, record, digest, loss, bytes_up, bytes_down, spent)
            for r in replies:
                kappa = None if r.curvature is None else r.curvature.astype("<f4").tobytes()
                row = (record.round, r.client, attempt, set_aside.get(r.client))
                row += (f"{r.digest:016x}", r.loss, r.examples, *r.scalars.shape)
                told = canonical_json(dict(r.facts), "facts") if r.facts else None
                db.insert("replies", (*row, r.scalars.astype("<f4").tobytes(), kappa, told))
                _stand(db, r.client, record.round)
            _note_faults(db, record.round, attempt, faults or {})
            for cut in cuts:
                db.insert("cuts", (cut.round, cut.client, cut.what, cut.given, cut.taken))

    def follow(self, records: Sequence[Record], digest: int) -> None:
        """Appends records that the server committed, to a client's own copy of the log.

        Args:
            records: The next records.
            digest: The replica's digest before the first of these records, unsigned 64 bits.

        Raises:
            ProtocolError: The records are not the next ones; nothing was written.
        """
        with self._write() as db:
            for number, record in enumerate(records):
                down = SCALAR_BYTES * record.scalars
                self._append(db, record, None if number else digest, None, 0, down, "{}")

    def _append(
        self,
        db: Database,
        record: Record,
        digest: int | None,
        loss: float | None,
        bytes_up: int,
        bytes_down: int,
        seconds: str,
    ) -> None:
        if record.round != self.position:
            raise ProtocolError(
                f"record of round {record.round} does not come next: the log of {self.path} "
                f"continues with round {self.position}. Does another process write to it?"
            )
        chain = record.chain(self.chain_at(record.round))
        known = None if digest is None else f"{digest:016x}"
        row = (record.round, record.to_bytes(), chain, known, loss, bytes_up, bytes_down)
        db.insert("records", (*row, seconds, time.time()))

    def note_messages(self, round: int, sizes: Mapping[int, tuple[int, int]]) -> None:
        """Stores for each client the bytes (up, down) of whole messages in a round."""
        with self._write() as db:
            for client, (up, down) in sizes.items():
                db.insert("messages", (round, client, up, down))

    def message_bytes(self) -> tuple[int, int]:
        """Bytes (up, down) of whole messages."""
        query = "SELECT coalesce(sum(bytes_up), 0), coalesce(sum(bytes_down), 0) FROM messages"
        return self._db.one(_BYTES, query)

    def abort(
        self,
        round: int,
        attempt: int,
        reason: str,
        replied: Sequence[int],
        *,
        up: int,
        down: int,
        faults: Mapping[int, Kind] | None = None,
        disputed: Mapping[int, int] | None = None,
    ) -> None:
        """Stores an aborted attempt at a round, and its cost in bytes.

        Args:
            round: The round, which is still the next one.
            attempt: The number of the attempt.
            reason: Why the attempt was aborted.
            replied: Clients that sent a valid reply; their position is this round.
            up: Bytes of scalars sent up.
            down: Bytes of scalars sent down.
            faults: Clients at fault, and the kind of fault.
            disputed: Digests of clients, if none had a majority. A client is at fault if the round
                is later committed with another digest.
        """
        with self._write() as db:
            db.insert("aborts", (round, attempt, reason, up, down, time.time()))
            _note_faults(db, round, attempt, faults or {})
            for client, digest in (disputed or {}).items():
                db.insert("faults", (round, attempt, client, "digest", f"{digest:016x}"))
            for client in replied:
                _stand(db, client, round)

    def attempt(self, round: int) -> int:
        """Number of aborted attempts at `round`; it is also the number of the next attempt."""
        query = "SELECT coalesce(max(attempt) + 1, 0) FROM aborts WHERE round = ?"
        return self._db.one(integer, query, round)

    def client_position(self, client: int) -> int:
        """Position of a client's replica when it last sent a valid reply, or 0."""
        query = "SELECT position FROM clients WHERE client = ?"
        return self._db.first(integer, query, client) or 0

    def last_agreed(self, client: int) -> int | None:
        """The last position at which a client's digest equalled the quorum's, or None."""
        query = "SELECT max(round) FROM replies WHERE client = ? AND set_aside IS NULL"
        return self._db.one(optional(integer), query, client)

    def last_replies(self) -> dict[int, int]:
        """For each client that has sent a valid reply to a committed round, the last such round."""
        query = "SELECT client, max(round) FROM replies GROUP BY client ORDER BY client"
        return dict(self._db.rows(columns(integer, integer), query))

    def rounds(self, start: int = 0) -> list[RoundRow]:
        """Every committed round from `start` on, for display."""
        query = """
            SELECT r.round, p.client, p.set_aside,
                r.seconds, r.time, r.loss, r.bytes_up, r.bytes_down
            FROM records r LEFT JOIN replies p USING (round)
            WHERE r.round >= ? ORDER BY r.round, p.client"""
        rows: dict[int, RoundRow] = {}

        def add(number: int, client: Any, reason: Any, seconds: Any, *figures: Any) -> None:
            if number not in rows:
                at, loss, up, down = _FIGURES(*figures)
                rows[number] = RoundRow(number, loss, up, down, numbers(seconds), [], {}, at)
            if reason is not None:
                rows[number].set_aside[integer(client)] = text(reason)
            elif client is not None:
                rows[number].clients.append(integer(client))

        self._db.rows(add, query, start)
        return list(rows.values())

    def answered(self) -> int:
        """Number of valid replies in all committed rounds, including abandoned rounds."""
        tables = ("replies", "abandoned_replies")
        return sum(self._db.one(integer, f"SELECT count(*) FROM {table}") for table in tables)

    def losses(self, start: int = 0, stop: int | None = None) -> list[float]:
        """Mean losses, where known, of rounds `start` to `stop` (exclusive; by default the
        end).
        """
        query = """
            SELECT loss FROM records
            WHERE round >= ? AND round < ? AND loss NOT NULL ORDER BY round"""
        return self._db.rows(real, query, start, self.position if stop is None else stop)

    def median_losses(self, start: int = 0, stop: int | None = None) -> list[float | None]:
        """`median_loss` of the replies that count, of rounds `start` to `stop` (exclusive).

        None also for a round whose replies are not here, as in a client's copy of the log.
        """
        query = """
            SELECT r.round, p.loss FROM records r
            LEFT JOIN replies p ON p.round = r.round AND p.set_aside IS NULL
            WHERE r.round >= ? AND r.round < ? ORDER BY r.round"""
        losses: dict[int, list[float | None]] = {}

        def add(number: Any, loss: Any) -> None:
            losses.setdefault(integer(number), []).append(optional(real)(loss))

        self._db.rows(add, query, start, self.position if stop is None else stop)
        return [median_loss(told) for told in losses.values()]

    def median_sizes(self, start: int = 0, stop: int | None = None) -> list[float]:
        """Median size of the scalars in the replies that count (`cuts.sizes`), of rounds `start`
        to `stop` (exclusive).
        """
        end = self.position if stop is None else stop
        found: dict[int, list[float]] = {}
        for row in self.replies(start, end):
            if row.set_aside is None:
                found.setdefault(row.round, []).append(sizes(row)["scalars"])
        return [median(told) for told in found.values()]

    def faults(self, start: int = 0) -> list[Fault]:
        """Every fault of a client from round `start` on, by round, then attempt, then client."""
        query = """
            SELECT round, attempt, client, kind FROM faults f LEFT JOIN records r USING (round)
            WHERE round >= ? AND (f.digest IS NULL OR f.digest != r.digest)
            ORDER BY round, attempt, client"""
        return [Fault(*row) for row in self._db.rows(_FAULT, query, start)]

    def cuts(self) -> list[Cut]:
        """All that counted for less than a reply said, by round, then client."""
        query = "SELECT round, client, what, given, taken FROM cuts ORDER BY round, client, what"
        rows = self._db.rows(columns(integer, integer, text, real, real), query)
        return [Cut(*row) for row in rows]

    def traffic(self) -> tuple[int, int]:
        """Total bytes of scalars (up, down), including aborted attempts and abandoned rounds."""
        tables = ("records", "aborts", "abandoned_records", "abandoned_aborts")
        parts = " UNION ALL ".join(f"SELECT bytes_up, bytes_down FROM {t}" for t in tables)
        query = f"SELECT coalesce(sum(bytes_up), 0), coalesce(sum(bytes_down), 0) FROM ({parts})"
        return self._db.one(_BYTES, query)

    def rollback(self, position: int) -> None:
        """Rolls back to `position`. Later rounds, aborts and evaluations are kept as abandoned.

        Settings are not rolled back: changed settings apply from `position` on.

        Raises:
            ProtocolError: The log is not that long.
        """
        with self._write() as db:
            self.check_rollback(position)
            tables = [f"SELECT generation FROM abandoned_{table}" for table in ROLLED_BACK]
            union = " UNION ALL ".join(tables)
            query = f"SELECT coalesce(max(generation), 0) + 1 FROM ({union})"
            generation = db.one(integer, query)
            for table, column in ROLLED_BACK.items():
                where = f"FROM {table} WHERE {column} {'>' if column == 'position' else '>='} ?"
                db.execute(
                    f"INSERT INTO abandoned_{table} SELECT ?, * {where}", (generation, position)
                )
                db.execute(f"DELETE {where}", (position,))
            for table in ("clients", "changes"):
                db.execute(f"UPDATE {table} SET position = min(position, ?)", (position,))

    def check_rollback(self, position: int) -> None:
        """Checks that the log has this position.

        Raises:
            ProtocolError: The log is not that long.
        """
        if not 0 <= position <= self.position:
            raise ProtocolError(
                f"cannot roll back to position {position}: the log has 0..{self.position}"
            )

    def verify(self) -> None:
        """Recomputes the chain from the bytes of every record, and the hash of the settings, and
        checks that the file's pages lost no row: without its last rows a chain is still right.

        Raises:
            ProtocolError: The message names the first damaged round, the settings or the page.
        """
        chain = self.root
        for expected, (number, data, stored) in enumerate(self._stored()):
            problem = None
            try:
                round, chain = round_of(blob(data)), chain_of(chain, data)
                if (number, round) != (expected, expected):
                    problem = f"the record in its place is that of round {round}"
                elif chain != stored:
                    problem = "its bytes do not give the chain hash that was stored with it"
            except (ProtocolError, TypeError) as error:
                problem = str(error)
            if problem:
                raise ProtocolError(
                    f"{self.path} is damaged from round {expected} on: {problem}. Restore the "
                    f"file from a copy, or go back to position {expected}, before the damage",
                    position=expected,
                )
        check_seal(self._db)
        check_pages(self._db)

    def _stored(self) -> Iterator[tuple[Any, ...]]:
        """Round, bytes and chain hash of every row, whatever they are, in the order of rounds."""
        query = """
            SELECT round, bytes, chain FROM records WHERE round > ? ORDER BY round LIMIT ?"""
        last = -(2**63)
        while rows := self._db.rows(_as_it_is, query, last, _CHUNK):
            yield from rows
            last = rows[-1][0]


_HAS_CHANGES = f"substr(bytes, {CHANGES_AT + 1}, 2) <> x'0000'"
_CHUNK = 10_000
"""Number of records in memory where all are read one after the other."""
_BYTES = columns(integer, integer)
_FAULT = columns(integer, integer, integer, text)
_FIGURES = columns(real, optional(real), integer, integer)


def _as_it_is(*row: Any) -> tuple[Any, ...]:
    return row


def _note_faults(db: Database, round: int, attempt: int, faults: Mapping[int, Kind]) -> None:
    for client, kind in faults.items():
        db.insert("faults", (round, attempt, client, kind, None))


def _stand(db: Database, client: int, position: int) -> None:
    db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?)", (client, position))
