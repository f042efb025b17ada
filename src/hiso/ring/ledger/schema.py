"""The ledger's file: its tables, and functions that create and open it.

The file is SQLite in WAL mode with synchronous=FULL: a commit is on the disk when it returns, and
the writer never blocks readers. `PRAGMA application_id` marks the file as a ledger, and `PRAGMA
user_version` is the format number. Format 1 had no facts, and in format 2 every reply had a loss;
`open_file` converts such files to format 3. Digests are 16 hex digits, scalars little-endian
float32.

While a writer has the file open, the last commits may be in the file `…-wal` next to it; SQLite
uses `…-shm` for locking. When the writer closes, the file itself holds the complete run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self, TypeVar

from hiso.errors import HisoError, ProtocolError, RunConflict, StorageError

FORMAT = 3
_APPLICATION = int.from_bytes(b"HISO", "big")

# Tables whose rows belong to a round or position, and the column with this number. `rollback`
# moves their rows to a table `abandoned_…`, which has an additional first column `generation`.
ROLLED_BACK = {
    "records": "round",
    "replies": "round",
    "aborts": "round",
    "evaluations": "position",
    "cuts": "round",
    "faults": "round",
}

_REPLIES = """
CREATE TABLE replies (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    set_aside TEXT,             -- why it does not count; NULL if it does
    digest TEXT NOT NULL,
    loss REAL,                  -- NULL if the client does not report it
    examples INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    directions INTEGER NOT NULL,
    scalars BLOB NOT NULL,      -- g, <f4[steps, directions]
    curvature BLOB,             -- kappa, same format
    facts TEXT,                 -- JSON: name -> number; NULL if there are none
    PRIMARY KEY (round, client)
);
CREATE INDEX replies_by_client ON replies (client, round);
"""

_TABLES = """
CREATE TABLE run (identity TEXT NOT NULL, settings TEXT NOT NULL);
CREATE TABLE records (
    round INTEGER PRIMARY KEY,
    bytes BLOB NOT NULL,        -- canonical bytes of the record
    chain BLOB NOT NULL,        -- chain hash of the log that ends with it
    digest TEXT,                -- the quorum's digest of the replica before it
    loss REAL,                  -- NULL in a client's copy of the log, as some digests are
    bytes_up INTEGER NOT NULL,
    bytes_down INTEGER NOT NULL,
    seconds TEXT NOT NULL,      -- JSON: name -> seconds
    time REAL NOT NULL          -- Unix time of the commit
);
CREATE TABLE aborts (
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    reason TEXT NOT NULL,
    bytes_up INTEGER NOT NULL,
    bytes_down INTEGER NOT NULL,
    time REAL NOT NULL,
    PRIMARY KEY (round, attempt)
);
CREATE TABLE evaluations (
    position INTEGER NOT NULL,
    split TEXT NOT NULL,
    metrics TEXT NOT NULL,      -- JSON: name -> number
    time REAL NOT NULL,
    PRIMARY KEY (position, split)
);
CREATE TABLE messages (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    bytes_up INTEGER NOT NULL,  -- of whole messages, as they were handed to the transport
    bytes_down INTEGER NOT NULL
);
CREATE TABLE clients (client INTEGER PRIMARY KEY, position INTEGER NOT NULL);
CREATE TABLE refusals (client INTEGER, round INTEGER, reason TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE changes (
    position INTEGER NOT NULL,
    key TEXT NOT NULL,
    old TEXT NOT NULL,          -- JSON
    new TEXT NOT NULL,          -- JSON
    time REAL NOT NULL
);
"""

# Ledgers made before there were these get them, empty, when they are opened.
_LATER = """
CREATE TABLE IF NOT EXISTS cuts (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    what TEXT NOT NULL,         -- what in its reply counted for less
    given REAL NOT NULL,
    taken REAL NOT NULL,
    PRIMARY KEY (round, client, what)
);
CREATE TABLE IF NOT EXISTS faults (
    round INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    client INTEGER NOT NULL,
    kind TEXT NOT NULL,         -- see `Fault`
    digest TEXT,                -- where none had a majority: a fault if the round's is another
    PRIMARY KEY (round, attempt, client)
);
CREATE TABLE IF NOT EXISTS data_marks (
    client INTEGER NOT NULL,
    mark TEXT NOT NULL,         -- see `Site.mark_data`
    position INTEGER NOT NULL,  -- of the log when the client first had it
    time REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS owners (
    client INTEGER PRIMARY KEY,
    key TEXT NOT NULL,          -- fingerprint of the first key that claimed the number
    site TEXT NOT NULL,         -- the name under which this key is registered
    time REAL NOT NULL
);
""" + "".join(
    f"CREATE TABLE IF NOT EXISTS abandoned_{table} AS "
    f"SELECT 0 AS generation, * FROM {table} WHERE 0;\n"
    for table in ROLLED_BACK
)


# Not among the tables above: older ledgers have no seal until their settings change.
_SEAL = "CREATE TABLE IF NOT EXISTS seal (sha256 TEXT NOT NULL)"
_T = TypeVar("_T")
_STORAGE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def integer(value: Any) -> int:
    """A column that holds a whole number."""
    return _of(int, value)


def real(value: Any) -> float:
    """A column that holds a number."""
    return _of(float, value)


def blob(value: Any) -> bytes:
    """A column that holds bytes."""
    return _of(bytes, value)


def text(value: Any) -> str:
    """A column that holds text; raises if its bytes are not UTF-8."""
    _of(str, value).encode()
    return value


def hexadecimal(value: Any) -> int:
    """A column that holds a digest."""
    return int(text(value), 16)


def parsed(value: Any) -> Any:
    """A column that holds JSON."""
    return json.loads(text(value))


def mapping(value: Any) -> dict[str, Any]:
    """A column that holds a JSON object."""
    return _of(dict, parsed(value))


def numbers(value: Any) -> dict[str, float]:
    """A column that holds a JSON object of numbers."""
    return {name: _of((int, float), number) for name, number in mapping(value).items()}


def optional(kind: Callable[[Any], _T]) -> Callable[[Any], _T | None]:
    """A column that may be NULL."""
    return lambda value: None if value is None else kind(value)


def columns(*kinds: Callable[[Any], Any]) -> Callable[..., tuple[Any, ...]]:
    """A row with columns of these kinds."""
    return lambda *row: tuple(kind(value) for kind, value in zip(kinds, row, strict=True))


def _of(kind: type[_T] | tuple[type[_T], ...], value: Any) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is not what this column holds")
    return value


class Database:
    """A connection to a file. All access to rows goes through it, so all errors are hiso's own.

    Raises:
        ProtocolError: The file is damaged: SQLite cannot read its pages, or a row holds values
            that hiso does not write.
        StorageError: The disk is full, or the file cannot be read or written.
        RunConflict: Another process has kept the file locked for a minute.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection, self._open = path, connection, True
        # Bytes that are not UTF-8 become a string that `text` refuses, not an error of the query.
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")

    def rows(self, make: Callable[..., _T], query: str, *values: Any) -> list[_T]:
        """`make` applied to the columns of each row; `make` raises if a value is damaged."""
        with translated(self.path), closing(self._connection.execute(query, values)) as rows:
            try:  # an open cursor would prevent `close` from moving commits into the file
                return [make(*row) for row in rows]
            except (ValueError, TypeError, KeyError, ProtocolError) as error:
                raise damaged(self.path, error) from error

    def first(self, make: Callable[..., _T], query: str, *values: Any) -> _T | None:
        """The first row, or None if there is none."""
        return next(iter(self.rows(make, query, *values)), None)

    def one(self, make: Callable[..., _T], query: str, *values: Any) -> _T:
        """The only row."""
        rows = self.rows(make, query, *values)
        if len(rows) != 1:
            raise damaged(self.path, f"{len(rows)} rows where there must be one")
        return rows[0]

    def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Runs a statement."""
        with translated(self.path):
            self._connection.execute(statement, values)

    def insert(self, table: str, row: Sequence[Any]) -> None:
        """Appends a row to a table."""
        self.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Writes all changes of the block to disk at its end, or none if the block fails."""
        with translated(self.path), self._connection:
            self.execute("BEGIN IMMEDIATE")
            yield

    def close(self) -> None:
        """Moves everything from `…-wal` into the file itself, and closes the file.

        If another process is reading at this moment, the next process to close moves the data.
        """
        if not self._open:
            return
        self._open = False
        with closing(self._connection), suppress(RunConflict), translated(self.path):
            self._connection.execute("PRAGMA busy_timeout=1000")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except HisoError:
            if error is None:  # otherwise raise the earlier error
                raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns exceptions of SQLite and of the system into hiso's own errors."""
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.NotSupportedError):
        raise  # a defect of hiso
    except sqlite3.DatabaseError as error:
        raise _ours(path, error) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes damaged bytes
        raise damaged(path, error) from error
    except OSError as error:
        raise StorageError.of(path, error) from error


def _ours(path: Path, error: sqlite3.DatabaseError) -> HisoError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in _BUSY:
        return RunConflict(
            f"another process has kept {path} locked for a minute: wait for it or stop it"
        )
    if code & 0xFF in _STORAGE and code != sqlite3.SQLITE_IOERR_SHORT_READ:
        return StorageError.of(path, error)
    return damaged(path, error)


def damaged(path: Path, problem: object) -> ProtocolError:
    """The error for a damaged file."""
    return ProtocolError(
        f"{path} cannot be used: {problem}. It is damaged, or not what hiso wrote there: restore "
        "it from a copy; without a copy of a ledger, a rollback to a position before the damage "
        "may help"
    )


def create_file(path: Path, identity: str, settings: str) -> Database:
    """Creates a ledger file in one transaction: a kill leaves a complete ledger or none.

    Raises:
        RunConflict: A non-empty file exists already.
        StorageError: The disk is full, or the folder does not exist.
    """
    with connected(path, "rwc") as db:
        db.execute("PRAGMA journal_mode=WAL")
        with db.transaction():
            if _tables(db):
                raise RunConflict(
                    f"{path} exists already: resume its run, or choose another folder"
                )
            for statement in (_TABLES + _REPLIES + _LATER).split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO run VALUES (?, ?)", (identity, settings))
            seal(db)
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={FORMAT}")
    return db


def seal(db: Database) -> None:
    """Stores a hash of the present identity and settings, which the chain hash does not cover."""
    db.execute(_SEAL)
    db.execute("DELETE FROM seal")
    db.insert("seal", (_run_hash(db),))


def check_seal(db: Database) -> None:
    """Checks that identity and settings are unchanged since hiso wrote them.

    Raises:
        ProtocolError: They were changed. (Older ledgers have no seal until their settings change.)
    """
    query = "SELECT count(*) FROM sqlite_master WHERE name = 'seal'"
    if db.one(integer, query) and db.one(text, "SELECT sha256 FROM seal") != _run_hash(db):
        raise damaged(db.path, "identity or settings were changed")


def check_pages(db: Database) -> None:
    """Checks that every row of the file is where SQLite put it, and that none is left out.

    Raises:
        ProtocolError: The counts or the order of rows in the pages are not right.
    """
    problem = db.rows(text, "PRAGMA quick_check(1)")
    if problem != ["ok"]:
        raise damaged(db.path, "; ".join(problem))


def _run_hash(db: Database) -> str:
    texts = db.one(columns(text, text), "SELECT identity, settings FROM run")
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def open_file(path: Path) -> Database:
    """Opens a ledger file to read and write.

    Raises:
        ProtocolError: There is no file, it is not a ledger, is damaged, or has another format.
        StorageError: The file cannot be read.
    """
    _check_that_it_is_there(path)
    with connected(path, "rw") as db:
        _check_format(db)
        _update(db)
    return db


def read_file(path: Path) -> Database:
    """A read-only copy of a ledger file's present state, in a temporary file of SQLite's.

    Copying blocks no other process and creates no files, so the medium may be read-only.

    Raises:
        ProtocolError: There is no file, it is not a ledger, is damaged, or has another format.
        StorageError: The file cannot be read.
    """
    _check_that_it_is_there(path)
    with copied(path) as db:
        _check_format(db)
        _update(db)
        db.execute("PRAGMA query_only=1")
    return db


def has_tables(path: Path) -> bool:
    """Whether a file holds a ledger; False for an empty database, which a kill may leave behind.

    True for a file that is damaged or cannot be read: opening it then raises the error.
    """
    try:
        with copied(path) as db, db:
            return _tables(db) > 0
    except HisoError:
        return True


def _tables(db: Database) -> int:
    return db.one(integer, "SELECT count(*) FROM sqlite_master")


def _check_that_it_is_there(path: Path) -> None:
    if not path.is_file():
        raise ProtocolError(f"there is no ledger at {path}: start a run there first")


def _check_format(db: Database) -> None:
    application = db.one(integer, "PRAGMA application_id")
    version = db.one(integer, "PRAGMA user_version")
    if application != _APPLICATION:
        raise ProtocolError(
            f"{db.path} is not a ledger: it is another kind of SQLite file, or empty"
        )
    if not 1 <= version <= FORMAT:
        raise ProtocolError(
            f"{db.path} has ledger format {version}, this hiso reads formats up to {FORMAT}: "
            "use the version of hiso that made the run, or a newer one"
        )


def _update(db: Database) -> None:
    """Adds what older ledgers lack: the tables of `_LATER`, a column for facts in format 1, and
    replies without a loss in formats 1 and 2.
    """
    known = db.one(integer, "SELECT count(*) FROM sqlite_master WHERE name = 'owners'")
    if known and db.one(integer, "PRAGMA user_version") == FORMAT:
        return
    with db.transaction():
        for statement in _LATER.split(";\n"):
            db.execute(statement)
        version = db.one(integer, "PRAGMA user_version")  # another process may have changed it
        if version < 2:
            db.execute("ALTER TABLE replies ADD COLUMN facts TEXT")
            db.execute("ALTER TABLE abandoned_replies ADD COLUMN facts TEXT")
        if version < 3:
            db.execute("ALTER TABLE replies RENAME TO older_replies")
            db.execute("DROP INDEX replies_by_client")
            for statement in _REPLIES.split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO replies SELECT * FROM older_replies")
            db.execute("DROP TABLE older_replies")
            db.execute(f"PRAGMA user_version={FORMAT}")


@contextmanager
def connected(path: Path, mode: str) -> Iterator[Database]:
    """A connection to read and write, closed if the block fails."""
    with translated(path), ExitStack() as stack:
        db = stack.enter_context(Database(path, _connect(path, f"mode={mode}")))
        db.execute("PRAGMA synchronous=FULL")
        yield db
        stack.pop_all()


@contextmanager
def copied(path: Path) -> Iterator[Database]:
    """A copy in a temporary file, which SQLite keeps in memory if it is small; closed if the block
    fails. No other file is created or changed.
    """
    with translated(path), ExitStack() as stack:
        copy = sqlite3.connect("", isolation_level=None)
        db = stack.enter_context(Database(path, copy))
        _copy(path.resolve(), copy)
        yield db
        stack.pop_all()


def _copy(path: Path, copy: sqlite3.Connection) -> None:
    """Copies everything that was committed.

    If `…-wal` is empty, only the file itself is read, and read again if a writer opened it
    meanwhile: any other way of reading would create `…-wal` and `…-shm` and leave them there.
    """
    wal, shm = Path(f"{path}-wal"), Path(f"{path}-shm")
    while not _size(wal):
        before = path.stat()
        _backup(path, "mode=ro&immutable=1", copy)
        now = path.stat()
        same = (now.st_mtime_ns, now.st_size) == (before.st_mtime_ns, before.st_size)
        if same and not _size(wal):
            return
    if shm.exists():  # another process writes, or was killed
        _backup(path, "mode=ro", copy)
        return
    with TemporaryDirectory() as folder:  # for files copied from another place
        for file in (path, wal):
            shutil.copyfile(file, Path(folder) / file.name)
        _backup(Path(folder) / path.name, "mode=rw", copy)


def _backup(path: Path, options: str, copy: sqlite3.Connection) -> None:
    with closing(_connect(path, options)) as connection:
        connection.backup(copy)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{options}"
    return sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
