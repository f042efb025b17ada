"""What a site has answered, in one SQLite file that is only ever appended to.

It belongs to the site, not to a run: rolling back a run removes nothing from it.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path

from hiso.errors import ProtocolError
from hiso.ring.ledger.schema import (
    Database,
    blob,
    columns,
    connected,
    copied,
    integer,
    text,
    translated,
)
from hiso.ring.messages import Reply
from hiso.ring.wire import reply_to_bytes

FORMAT = 1
_APPLICATION = int.from_bytes(b"HANS", "big")
_TABLE = """
CREATE TABLE answers (
    asked BLOB PRIMARY KEY,     -- hash of the plan, as the reply quotes it
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    scalars INTEGER NOT NULL,   -- float32 numbers in the reply
    reply BLOB NOT NULL,        -- its bytes, as they were sent
    time REAL NOT NULL          -- Unix time
) STRICT
"""
_SENT = "SELECT coalesce(sum(scalars), 0) FROM answers"


class Answers:
    """The replies of a site by the hash of what was asked. One process uses the file at a time.

    Raises:
        ProtocolError: The file is damaged, or is something else.
        StorageError: The disk is full, or the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, or creates it so that only its owner can read it."""
        with translated(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with connected(path, "rw") as self._db:
            _prepare(self._db)
            query = "SELECT run, max(round), sum(scalars) FROM answers GROUP BY run"
            found = self._db.rows(columns(text, integer, integer), query)
        self._reached = {run: reached for run, reached, _ in found}
        self._sent = sum(sent for _, _, sent in found)

    def find(self, asked: bytes) -> bytes | None:
        """The bytes of the reply to this question, or None."""
        return self._db.first(blob, "SELECT reply FROM answers WHERE asked = ?", asked)

    def keep(self, reply: Reply) -> None:
        """Appends a reply; it is on the disk when the method returns.

        Raises:
            ProtocolError: The same question has been answered already.
        """
        row = (reply.asked, reply.run, reply.round, reply.count)
        with self._db.transaction():
            self._db.insert("answers", (*row, reply_to_bytes(reply), time.time()))
        self._reached[reply.run] = max(reply.round, self.reached(reply.run))
        self._sent += reply.count

    @property
    def sent(self) -> int:
        """float32 numbers in all replies, over all runs."""
        return self._sent

    def reached(self, run: str) -> int:
        """The last round of a run that was answered; 0 before the first."""
        return self._reached.get(run, 0)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def read_sent(path: Path) -> int:
    """`Answers.sent` of a file that a worker may be using, which is not changed; 0 without a file.

    Raises:
        ProtocolError: The file is damaged.
        StorageError: The file cannot be read.
    """
    if not path.exists():
        return 0
    with copied(path) as db, closing(db):
        return db.one(integer, _SENT)


def _prepare(db: Database) -> None:
    """Creates the table in a new file; checks that an old file is of this kind and format."""
    db.execute("PRAGMA journal_mode=WAL")
    with db.transaction():
        if not db.one(integer, "SELECT count(*) FROM sqlite_master"):
            db.execute(_TABLE)
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={FORMAT}")
    kind = db.one(integer, "PRAGMA application_id"), db.one(integer, "PRAGMA user_version")
    if kind != (_APPLICATION, FORMAT):
        raise ProtocolError(
            f"{db.path} is not a file of answers of format {FORMAT}: restore it from a copy, or "
            "use the version of hiso that made it"
        )
