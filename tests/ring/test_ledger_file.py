"""The ledger's file: damaged, on a full or read-only disk, read beside a writer, copied."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from hiso.errors import Diverged, ProtocolError, RunConflict, StorageError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.schema import has_tables

from ..readonly import files, run_read_only
from .standin import log_bytes, new_ledger
from .test_ledger import commit, record_of

ROUNDS = 6
ROOT = Path(__file__).parents[len(__package__.split("."))]


def fill(ledger: Ledger) -> None:
    """A row or more in every table that a reader reads."""
    for r in range(ROUNDS):
        commit(ledger, r)
        ledger.record_evaluation(r, "test", {"accuracy": r / 8, "loss": 0.5})
    ledger.change({"rounds": 50, "mu": 0.5})
    ledger.refuse(1, None, "late")
    ledger.abort(ROUNDS, 0, "no majority", [0], up=4, down=8)
    ledger.note_messages(0, {0: (100, 200)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A closed ledger, not to be altered."""
    path = tmp_path_factory.mktemp("whole") / "ledger.db"
    with new_ledger(path) as ledger:
        fill(ledger)
    return path


@pytest.fixture
def path(tmp_path, whole) -> Path:
    """A copy of it."""
    return Path(shutil.copy(whole, tmp_path / "ledger.db"))


READERS: dict[str, Callable[[Ledger], object]] = {
    "verify": Ledger.verify,
    "records": log_bytes,
    "rounds": Ledger.rounds,
    "losses": Ledger.losses,
    "median losses": Ledger.median_losses,
    "replies": Ledger.replies,
    "evaluations": Ledger.evaluations,
    "changes": Ledger.changes,
    "refusals": Ledger.refusals,
    "cuts": Ledger.cuts,
    "faults": Ledger.faults,
    "owners": Ledger.owners,
    "settings": lambda ledger: ledger.settings,
    "position": lambda ledger: ledger.position,
    "traffic": Ledger.traffic,
    "messages": Ledger.message_bytes,
    "answered": Ledger.answered,
    "hyper": Ledger.hyper_at,
    "last digest": Ledger.last_digest,
    "chains": lambda ledger: [ledger.chain_at(r) for r in range(ROUNDS)],
    "digests": lambda ledger: [ledger.digest_at(r) for r in range(ROUNDS)],
    "clients": lambda ledger: (ledger.client_position(1), ledger.last_agreed(0)),
    "attempt": lambda ledger: ledger.attempt(ROUNDS),
}


def read_all(opened: Callable[[Path], Ledger], path: Path) -> dict[str, object]:
    """What every reader says; `ProtocolError` for those that raise it."""
    told: dict[str, object] = {}
    with opened(path) as ledger:
        for name, read in READERS.items():
            try:
                told[name] = read(ledger)
            except ProtocolError:
                told[name] = ProtocolError
    return told


@pytest.mark.parametrize("opened", [Ledger.open, Ledger.read], ids=["open", "read"])
def test_whatever_bit_flips_no_reader_ends_with_an_error_of_a_library(path, opened):
    data, chances, damaged = path.read_bytes(), random.Random(0), 0
    written = [place for place, byte in enumerate(data) if byte]
    with Ledger.read(path) as ledger:
        log = log_bytes(ledger)
    for place in chances.sample(written, 300):
        flipped = bytearray(data)
        flipped[place] ^= 1 << chances.randrange(8)
        path.write_bytes(flipped)
        assert has_tables(path) in (True, False)
        try:
            told = read_all(opened, path)
        except ProtocolError:
            damaged += 1
            continue
        damaged += ProtocolError in told.values()
        if told["verify"] is None:
            assert told["records"] == log
    assert damaged > 60


def test_a_page_that_says_that_it_has_fewer_records_is_noticed(path):
    with closing(sqlite3.connect(path)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'records'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    cells = (page - 1) * size + 4  # the low byte of the number of rows in this page
    assert data[cells] == ROUNDS
    data[cells] -= 1
    path.write_bytes(data)
    with Ledger.read(path) as ledger:
        assert ledger.position == ROUNDS - 1
        with pytest.raises(ProtocolError, match=path.name):
            ledger.verify()


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 5000, 20000])
@pytest.mark.parametrize("opened", [Ledger.open, Ledger.read], ids=["open", "read"])
def test_a_file_that_is_cut_short_is_named(path, size, opened):
    os.truncate(path, size)
    with pytest.raises(ProtocolError, match=path.name):
        opened(path)


@pytest.mark.parametrize(
    ("change", "reader"),
    [
        ("evaluations SET metrics = '{'", "evaluations"),
        ('evaluations SET metrics = \'{"loss": "low"}\'', "evaluations"),
        ("evaluations SET split = x'00'", "evaluations"),
        ("evaluations SET split = CAST(x'ff' AS TEXT)", "evaluations"),
        ("changes SET old = 'tru'", "changes"),
        ("changes SET position = 'x'", "changes"),
        ("run SET settings = '[]'", "settings"),
        ("refusals SET reason = x'00'", "refusals"),
        ("records SET loss = 'x' WHERE round = 2", "losses"),
        ("records SET loss = x'00' WHERE round = 2", "rounds"),
        ("records SET seconds = '{\"round\": null}' WHERE round = 2", "rounds"),
        ("records SET bytes_up = 'x' WHERE round = 2", "traffic"),
        ("records SET bytes_down = 9223372036854775807", "traffic"),
        ("records SET digest = 'no digit'", "digests"),
        ("records SET digest = 'no digit'", "last digest"),
        ("records SET chain = CAST('x' AS TEXT)", "chains"),
        ("records SET bytes = 'text' WHERE round = 2", "records"),
        ("records SET bytes = 'text' WHERE round = 2", "verify"),
        ("records SET round = 9223372036854775807 WHERE round = 5", "position"),
        ("records SET round = 90 WHERE round = 5", "records"),
        ("replies SET scalars = x'0000' WHERE round = 2", "replies"),
        ("replies SET steps = 7 WHERE round = 2", "replies"),
        ("replies SET client = 'x' WHERE round = 2 AND client = 0", "rounds"),
        ("clients SET position = 'x'", "clients"),
        ("messages SET bytes_up = 'x'", "messages"),
    ],
)
def test_a_row_that_holds_something_else_is_damage(path, change, reader):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"UPDATE {change}")
    with Ledger.read(path) as ledger, pytest.raises(ProtocolError, match=path.name):
        READERS[reader](ledger)


@pytest.mark.parametrize("identity", ["'{'", "'[]'", "3", "NULL", "CAST(x'7bff7d' AS TEXT)"])
def test_an_identity_that_is_no_json_object_is_damage(path, identity):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE new (identity, settings)")
        db.execute(f"INSERT INTO new SELECT {identity}, settings FROM run")
        db.execute("DROP TABLE run")
        db.execute("ALTER TABLE new RENAME TO run")
    for opened in (Ledger.open, Ledger.read):
        with pytest.raises(ProtocolError, match=path.name):
            opened(path)


FULL = """
import resource, sys
from hiso.errors import StorageError
from hiso.ring.ledger.ledger import Ledger
from {package}.test_ledger import commit

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with Ledger.open(sys.argv[1]) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))  # SIGXFSZ is ignored
    try:
        while True:
            commit(ledger, ledger.position)
    except StorageError as error:
        assert sys.argv[1] in str(error) and error.exit_code == 7
    full = ledger.position
    ledger.verify()
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    commit(ledger, full)
    print(full)
"""


def in_a_process(code: str, *arguments: object, check: bool = True) -> str:
    """Runs a script that may import what is beside this file."""
    command = [sys.executable, "-c", code.format(package=__package__), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("size", [70_000, 100_000, 123_456])
def test_a_full_disk_loses_no_committed_round_and_the_same_ledger_goes_on(path, size):
    full = int(in_a_process(FULL, path, size))
    assert full >= ROUNDS
    with Ledger.open(path) as ledger:
        ledger.verify()
        assert ledger.position == full + 1
        assert log_bytes(ledger) == [record_of(r).to_bytes() for r in range(full + 1)]


def test_a_disk_that_is_full_from_the_start_leaves_no_half_of_a_ledger(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from hiso.errors import StorageError
from {package}.standin import new_ledger

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
try:
    new_ledger(Path(sys.argv[1]))
except StorageError:
    print("full")
"""
    assert in_a_process(code, tmp_path / "ledger.db") == "full\n"
    assert not has_tables(tmp_path / "ledger.db")
    with new_ledger(tmp_path / "ledger.db") as ledger:
        commit(ledger, 0)


def test_the_error_of_before_is_not_hidden_by_a_disk_that_is_still_full(path):
    code = """
import resource, sys
from hiso.ring.ledger.ledger import Ledger
from {package}.test_ledger import commit

_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
try:
    with Ledger.open(sys.argv[1]) as ledger:
        while ledger.position < 60:
            commit(ledger, ledger.position)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        raise KeyError("first")
except Exception as error:
    print(type(error).__name__)
try:
    with Ledger.open(sys.argv[1]) as ledger:
        ledger.verify()
        commit(ledger, 60) if sys.argv[2] == "write" else None
except Exception as error:
    print(type(error).__name__)
"""
    assert in_a_process(code, path, "write").split() == ["KeyError", "StorageError"]
    with Ledger.open(path) as ledger:
        assert ledger.position == 60


def test_a_lock_that_is_held_for_too_long_is_a_conflict(path):
    with Ledger.open(path) as ledger, closing(sqlite3.connect(path, isolation_level=None)) as other:
        ledger._db._connection.execute("PRAGMA busy_timeout=10")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RunConflict, match="locked"):
            commit(ledger, ROUNDS)
        other.execute("ROLLBACK")
        commit(ledger, ROUNDS)


def test_to_read_writes_nothing_and_gives_the_ledger_as_it_stood(path):
    before = files(path.parent)
    told = read_all(Ledger.read, path)
    with Ledger.read(path) as ledger:
        assert files(path.parent) == before
        with Ledger.open(path) as writer:
            commit(writer, ROUNDS)
        assert ledger.position == ROUNDS
        with pytest.raises(StorageError):
            commit(ledger, ROUNDS)
        assert ledger.position == ROUNDS
    assert has_tables(path)
    assert set(files(path.parent)) == set(before)
    again = read_all(Ledger.open, path)
    assert again["records"] == [*cast("list[bytes]", told["records"]), record_of(ROUNDS).to_bytes()]


def test_to_read_neither_waits_for_a_writer_nor_keeps_it_waiting(path):
    with Ledger.open(path) as writer:
        writer._db._connection.execute("PRAGMA busy_timeout=0")
        commit(writer, ROUNDS)
        with writer._write():
            before = set(files(path.parent))
            with Ledger.read(path) as reader:
                assert (reader.position, writer.position) == (ROUNDS + 1, ROUNDS + 1)
                assert log_bytes(reader) == log_bytes(writer)
            assert has_tables(path)
            assert set(files(path.parent)) == before
        with Ledger.read(path):
            commit(writer, ROUNDS + 1)
            writer.close()
            assert set(files(path.parent)) == {str(path)}


CROWD = """
import sys, time
from hiso.ring.ledger.ledger import Ledger
from {package}.test_ledger import commit

for _ in range(40):
    with Ledger.open(sys.argv[1]) as ledger:
        commit(ledger, ledger.position)
        commit(ledger, ledger.position)
"""


def test_to_read_while_writers_come_and_go_gives_whole_rounds(path):
    command = [sys.executable, "-c", CROWD.format(package=__package__), str(path)]
    seen = ROUNDS
    with subprocess.Popen(command, cwd=ROOT) as process:
        while process.poll() is None:
            with Ledger.read(path) as ledger:
                ledger.verify()
                assert ledger.position >= seen
                seen = ledger.position
    assert process.returncode == 0
    with Ledger.read(path) as ledger:
        assert ledger.position == ROUNDS + 80


READ_ONLY = """
import json, sys
from hiso.errors import HisoError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.schema import has_tables
from {package}.test_ledger import commit

with Ledger.read(sys.argv[1]) as ledger:
    ledger.verify()
    told = [has_tables(ledger.path), ledger.position, ledger.run]
try:
    with Ledger.open(sys.argv[1]) as ledger:
        commit(ledger, ledger.position)
except HisoError as error:
    told.append(type(error).__name__)
print(json.dumps(told))
"""
KILLED = """
import os, signal, sys
from hiso.ring.ledger.ledger import Ledger
from {package}.test_ledger import commit

ledger = Ledger.open(sys.argv[1])
for _ in range(3):
    commit(ledger, ledger.position)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("left", ["closed", "killed", "copied", "empty wal"])
def test_a_read_only_medium_can_be_read_and_not_written_to(path, left):
    end = ROUNDS
    if left in ("killed", "copied"):
        in_a_process(KILLED, path, check=False)
        end += 3
    if left == "copied":  # the lock's file need not come along
        Path(f"{path}-shm").unlink()
    if left == "empty wal":
        Path(f"{path}-wal").touch()
    with Ledger.read(path) as ledger:
        run = ledger.run
    command = [sys.executable, "-c", READ_ONLY.format(package=__package__), str(path)]
    told = run_read_only(path.parent, command, ROOT)
    assert json.loads(told) == [True, end, run, "StorageError"]


def test_a_file_that_may_not_be_read_is_no_damage(path):
    if not os.geteuid():
        pytest.skip("root may read everything")
    path.chmod(0)
    for opened in (Ledger.open, Ledger.read):
        with pytest.raises(StorageError, match=path.name):
            opened(path)
    assert has_tables(path)


def alone(path: Path, folder: Path) -> Ledger:
    """A copy of the file alone."""
    folder.mkdir(exist_ok=True)
    return Ledger.read(shutil.copy(path, folder / "alone.db"))


def five_rounds_and(error: type[BaseException], path: Path) -> None:
    with Ledger.open(path) as writer:
        for r in range(ROUNDS, ROUNDS + 5):
            commit(writer, r)
        raise error("for some reason")


@pytest.mark.parametrize("error", [Diverged, KeyboardInterrupt])
def test_when_the_writer_closes_the_file_alone_is_the_run(path, tmp_path, error):
    with Ledger.open(path) as idle, closing(sqlite3.connect(path)) as other:
        assert idle.position == ROUNDS
        assert other.execute("SELECT count(*) FROM records").fetchone() == (ROUNDS,)
        with pytest.raises(error):
            five_rounds_and(error, path)
        with alone(path, tmp_path / "copy") as copy:
            copy.verify()
            assert copy.position == ROUNDS + 5


def interrupt(*row: object) -> None:
    raise KeyboardInterrupt


def five_rounds_and_an_interrupted_query(path: Path) -> None:
    with Ledger.open(path) as writer:
        for r in range(ROUNDS, ROUNDS + 5):
            commit(writer, r)
        writer._db.rows(interrupt, "SELECT round FROM records")


def test_an_interrupt_in_the_middle_of_a_query_does_not_stop_the_writer_from_closing(
    path, tmp_path
):
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM records").fetchone() == (ROUNDS,)
        with pytest.raises(KeyboardInterrupt):
            five_rounds_and_an_interrupted_query(path)
        with alone(path, tmp_path / "copy") as copy:
            assert copy.position == ROUNDS + 5


def test_a_reader_in_the_middle_of_reading_does_not_stop_the_writer_from_closing(path, tmp_path):
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM records").fetchone() == (ROUNDS,)
        with Ledger.open(path) as writer:
            commit(writer, ROUNDS)
        with Ledger.read(path) as ledger:
            assert ledger.position == ROUNDS + 1
        reader.execute("COMMIT")
    Ledger.open(path).close()
    with alone(path, tmp_path / "copy") as copy:
        assert copy.position == ROUNDS + 1


def test_close_comes_twice_and_the_second_time_does_nothing(path):
    ledger = Ledger.open(path)
    ledger.close()
    ledger.close()
    with pytest.raises(sqlite3.ProgrammingError):
        commit(ledger, ROUNDS)


def test_after_a_kill_all_files_are_the_run_and_after_the_next_start_one_is(path, tmp_path):
    in_a_process(KILLED, path, check=False)
    assert Path(f"{path}-wal").stat().st_size > 0
    both = tmp_path / "both"
    both.mkdir()
    for name in (path.name, f"{path.name}-wal"):
        shutil.copy(path.parent / name, both / name)
    before = files(both)
    for at in (path, both / path.name):
        with Ledger.read(at) as ledger:
            ledger.verify()
            assert ledger.position == ROUNDS + 3
    assert files(both) == before
    Ledger.open(path).close()
    with alone(path, tmp_path / "copy") as copy:
        copy.verify()
        assert copy.position == ROUNDS + 3


def test_a_live_ledger_is_copied_by_sqlite(path, tmp_path):
    """As the documentation says."""
    with Ledger.open(path) as writer:
        commit(writer, ROUNDS)
        with (
            closing(sqlite3.connect(path)) as source,
            closing(sqlite3.connect(tmp_path / "copy.db")) as target,
        ):
            source.backup(target)
    with Ledger.open(tmp_path / "copy.db") as copy:
        copy.verify()
        assert copy.position == ROUNDS + 1
        commit(copy, ROUNDS + 1)
