"""The ledger's file: its tables, how it is made, and how it is opened.

The file is SQLite in WAL mode with synchronous=FULL: a commit is on the disk when it returns, and
readers are never blocked by the one writer. `PRAGMA application_id` says that it is a ledger,
`PRAGMA user_version` of which format. Digests are 16 hex digits, scalars little-endian float32.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hiso.errors import ProtocolError, RunConflict, SettingsError

FORMAT = 1
_APPLICATION = int.from_bytes(b"HISO", "big")

# Tables whose rows belong to a round or position, and the column that says to which.
# `rollback` moves their rows to a table `abandoned_…`, which has `generation` before them.
ROLLED_BACK = {
    "records": "round",
    "replies": "round",
    "aborts": "round",
    "evaluations": "position",
}

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
CREATE TABLE replies (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    set_aside TEXT,             -- why it does not count; NULL if it does
    digest TEXT NOT NULL,
    loss REAL NOT NULL,
    examples INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    directions INTEGER NOT NULL,
    scalars BLOB NOT NULL,      -- g, <f4[steps, directions]
    curvature BLOB,             -- kappa, likewise
    PRIMARY KEY (round, client)
);
CREATE INDEX replies_by_client ON replies (client, round);
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
""" + "".join(
    f"CREATE TABLE abandoned_{table} AS SELECT 0 AS generation, * FROM {table} WHERE 0;\n"
    for table in ROLLED_BACK
)


def canonical_json(value: Any, what: str) -> str:
    """JSON with sorted keys and no spaces, in ASCII: equal values have equal text.

    Raises:
        SettingsError: `what` holds something that JSON cannot say, or NaN or infinity.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{what} must be JSON with finite numbers: {error}") from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with ExitStack() as stack:
        try:
            connection = sqlite3.connect(uri, uri=True, timeout=60, isolation_level=None)
            stack.callback(connection.close)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA schema_version").fetchone()
        except sqlite3.DatabaseError as error:
            raise ProtocolError(f"{path} cannot be used as a ledger: {error}") from error
        stack.pop_all()
    return connection


def create_file(path: Path, identity: str, settings: str) -> sqlite3.Connection:
    """Makes a ledger file, in one transaction: a kill leaves a whole ledger or none.

    Raises:
        RunConflict: There is a file already that is not empty.
    """
    connection = _connect(path, "rwc")
    with ExitStack() as stack:
        stack.callback(connection.close)
        connection.execute("PRAGMA journal_mode=WAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise RunConflict(
                    f"{path} exists already: go on with its run, or choose another folder"
                )
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO run VALUES (?, ?)", (identity, settings))
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
        stack.pop_all()
    return connection


def open_file(path: Path) -> sqlite3.Connection:
    """Opens a ledger file to read and write.

    Raises:
        ProtocolError: There is no file, it is not a ledger, or it has another format.
    """
    if not path.is_file():
        raise ProtocolError(f"there is no ledger at {path}: start a run there first")
    connection = _connect(path, "rw")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    problem = None
    if application != _APPLICATION:
        problem = f"{path} is not a ledger: it is another kind of SQLite file, or empty"
    elif version != FORMAT:
        problem = (
            f"{path} has ledger format {version}, this hiso reads format {FORMAT}: "
            "use the version of hiso that made the run, or a newer one"
        )
    if problem:
        connection.close()
        raise ProtocolError(problem)
    return connection
