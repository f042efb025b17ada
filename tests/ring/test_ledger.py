from __future__ import annotations

import math
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hiso.core.record import Record, chain_root
from hiso.errors import ProtocolError, RunConflict, SettingsError, StorageError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Change, Evaluation
from hiso.ring.messages import Reply
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Closed, Server

from ..identities import identity_of
from .standin import Plain, clients_of, log_bytes, new_ledger, one_round

RULES = RoundSettings(clients=5, sample=3, steps=2, directions=2, mu=1e-3)


def record_of(round: int) -> Record:
    zero = np.zeros(1, np.uint16)
    coefficient = np.array([round + 0.5], np.float32)
    return Record(round, zero, zero.astype(np.uint32), zero, coefficient)


def reply_of(ledger: Ledger, round: int, client: int = 0) -> Reply:
    g = np.full((1, 1), round + 0.5, np.float32)
    return Reply(ledger.run, round, client, bytes(32), 2**64 - 1, g, g + 1, 0.5, 3)


def commit(ledger: Ledger, round: int) -> None:
    ledger.commit(
        record_of(round),
        [reply_of(ledger, round), reply_of(ledger, round, 1)],
        digest=2**64 - 1,
        set_aside={1: "parted"},
        loss=1 / 3,
        bytes_up=8,
        bytes_down=4 * round,
        seconds={"probe": 0.25},
    )


@pytest.fixture
def ledger(tmp_path):
    with new_ledger(tmp_path / "ledger.db") as ledger:
        yield ledger


def test_identity_and_root(ledger):
    canonical = (
        b'{"dtype":"float32","formats":{"noise":1,"record":1},"method":{"feed":"first","hyper":'
        b'{"lr":0.05},"name":"plain"},"noise":"binomial","seed":7}'
    )
    assert ledger.root == chain_root(canonical)
    assert ledger.run == ledger.root.hex()
    assert ledger.identity == identity_of(Plain(lr=0.05), seed=7)
    assert ledger.settings == {"rounds": 30}
    assert (ledger.position, ledger.records(), ledger.chain_at(0)) == (0, [], ledger.root)
    assert ledger.digest_at(0) is None


def test_a_commit_keeps_everything(ledger):
    for r in range(3):
        commit(ledger, r)
    chain = ledger.root
    for r in range(3):
        assert ledger.chain_at(r) == chain
        chain = record_of(r).chain(chain)
    assert ledger.chain_at(3) == chain
    assert [r.to_bytes() for r in ledger.records(1)] == [record_of(r).to_bytes() for r in (1, 2)]
    assert [r.round for r in ledger.records(0, 2)] == [0, 1]
    assert ledger.digest_at(2) == 2**64 - 1
    row = ledger.rounds()[2]
    assert (row.round, row.loss, row.bytes_up, row.bytes_down) == (2, 1 / 3, 8, 8)
    assert (row.seconds, row.clients, row.set_aside) == ({"probe": 0.25}, [0], {1: "parted"})
    assert ledger.client_position(1) == 2
    assert ledger.client_position(5) == 0
    assert (ledger.last_agreed(0), ledger.last_agreed(1)) == (2, None)
    with closing(sqlite3.connect(ledger.path)) as db:
        g, kappa = db.execute("SELECT scalars, curvature FROM replies WHERE round = 2").fetchone()
    assert (np.frombuffer(g, "<f4"), np.frombuffer(kappa, "<f4")) == ([2.5], [3.5])


@pytest.mark.parametrize("round", [0, 2, 3, 9])
def test_only_the_next_record_is_taken(ledger, round):
    commit(ledger, 0)
    reply = reply_of(ledger, 0)
    facts = {"set_aside": {}, "loss": 1.0, "bytes_up": 1, "bytes_down": 1, "seconds": {}}
    with pytest.raises(ProtocolError, match=f"round {round} does not come next.*round 1"):
        ledger.commit(record_of(round), [reply], digest=1, **facts)
    assert ledger.position == 1
    assert ledger.traffic() == (8, 0)


def test_a_position_beyond_the_log_is_named(ledger):
    with pytest.raises(ProtocolError, match=r"positions 0\.\.0, not 4"):
        ledger.chain_at(4)
    with pytest.raises(ProtocolError, match=r"back to position 1: the log has 0\.\.0"):
        ledger.rollback(1)


def test_settings_changes_are_logged_with_their_position(ledger):
    commit(ledger, 0)
    changed = ledger.change({"rounds": 50, "mu": 0.5})
    assert ledger.change({"rounds": 50}) == []
    assert changed == [Change(1, "rounds", 30, 50), Change(1, "mu", None, 0.5)]
    assert ledger.changes() == changed
    assert ledger.settings == {"rounds": 50, "mu": 0.5}
    with pytest.raises(SettingsError, match="finite"):
        ledger.change({"rounds": 60, "mu": math.inf})
    assert ledger.settings["rounds"] == 50


def test_evaluations(ledger):
    ledger.record_evaluation(5, "validation", {"accuracy": 0.5})
    ledger.record_evaluation(0, "validation", {"accuracy": 0.25})
    ledger.record_evaluation(5, "validation", {"accuracy": 0.75})
    assert ledger.evaluations() == [
        Evaluation(0, "validation", {"accuracy": 0.25}),
        Evaluation(5, "validation", {"accuracy": 0.75}),
    ]
    with pytest.raises(SettingsError, match="metrics must be JSON with finite numbers"):
        ledger.record_evaluation(5, "validation", {"accuracy": math.nan})


def test_rollback_loses_nothing_and_the_same_run_comes_again(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    rules = replace(RULES, min_replies=2)

    def go_on(rounds: int) -> None:
        server, clients = Server(ledger, rules), clients_of(ledger, 5)
        for client in clients:
            client.replica.replay(ledger.records())
        if ledger.position == 4:
            one_round(server, clients, silent=range(5))
        while ledger.position < rounds:
            one_round(server, clients)

    go_on(8)
    for position in (3, 4, 8):
        ledger.record_evaluation(position, "test", {"accuracy": position / 10})
    whole, traffic = log_bytes(ledger), ledger.traffic()
    ledger.rollback(3)
    assert (ledger.position, log_bytes(ledger)) == (3, whole[:3])
    assert [e.position for e in ledger.evaluations()] == [3]
    assert ledger.traffic() == traffic
    assert max(ledger.client_position(i) for i in range(5)) <= 3
    ledger.verify()
    go_on(8)
    assert log_bytes(ledger) == whole
    ledger.rollback(6)
    with closing(sqlite3.connect(ledger.path)) as db:
        kept = db.execute("SELECT generation, round, bytes FROM abandoned_records ORDER BY 1, 2")
        assert kept.fetchall() == [(1, r, whole[r]) for r in range(3, 8)] + [
            (2, r, whole[r]) for r in (6, 7)
        ]
        counts = [
            db.execute(f"SELECT count(*) FROM abandoned_{table}").fetchone()[0]
            for table in ("replies", "evaluations")
        ]
        assert counts == [3 * 7, 2]
    ledger.close()


@pytest.mark.parametrize("damage", ["bytes", "round", "chain", "gap", "identity"])
def test_verify_names_the_first_bad_round(ledger, damage):
    for r in range(6):
        commit(ledger, r)
    ledger.verify()
    queries = {
        "bytes": "UPDATE records SET bytes = substr(bytes, 2) WHERE round = 3",
        "round": "UPDATE records SET bytes = (SELECT bytes FROM records WHERE round = 4) "
        "WHERE round = 3",
        "chain": "UPDATE records SET chain = zeroblob(32) WHERE round = 3",
        "gap": "DELETE FROM records WHERE round = 3",
        "identity": """UPDATE run SET identity = '{"seed":8}'""",
    }
    with closing(sqlite3.connect(ledger.path)) as db, db:
        db.execute(queries[damage])
    first = 0 if damage == "identity" else 3
    with (
        Ledger.open(ledger.path) as again,
        pytest.raises(ProtocolError, match=f"damaged from round {first} on") as refusal,
    ):
        again.verify()
    assert refusal.value.position == first


def test_create_never_overwrites_and_a_killed_creation_can_be_repeated(tmp_path):
    path = tmp_path / "a b?#%é.db"
    path.touch()  # as a kill before the first transaction leaves it
    with pytest.raises(ProtocolError, match="not a ledger"):
        Ledger.open(path)
    new_ledger(path).close()
    with pytest.raises(RunConflict, match="exists already"):
        new_ledger(path)
    with pytest.raises(SettingsError, match="settings must be JSON"):
        Ledger.create(tmp_path / "x", identity_of(Plain()), {"lr": math.nan})
    assert not (tmp_path / "x").exists()


def test_open_says_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(ProtocolError, match="no ledger at"):
        Ledger.open(tmp_path / "none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("no database at all\n" * 100)
    for opened in (Ledger.open, Ledger.read):
        with pytest.raises(ProtocolError, match="not what hiso wrote there"):
            opened(tmp_path / "text.db")
    with pytest.raises(StorageError, match=r"folder.db: unable to open"):
        new_ledger(tmp_path / "no" / "folder.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute("CREATE TABLE things (x)")
    with pytest.raises(ProtocolError, match="another kind of SQLite file"):
        Ledger.open(tmp_path / "other.db")
    with pytest.raises(RunConflict):
        new_ledger(tmp_path / "other.db")
    new_ledger(tmp_path / "newer.db").close()
    with closing(sqlite3.connect(tmp_path / "newer.db")) as db, db:
        db.execute("PRAGMA user_version=9")
    with pytest.raises(ProtocolError, match=r"format 9, this hiso reads formats up to 3.*newer"):
        Ledger.open(tmp_path / "newer.db")


def test_a_ledger_of_format_1_is_read_and_goes_on(tmp_path):
    """Format 1 had no column for facts; a reader updates its copy, a writer the file."""
    path = tmp_path / "old.db"
    new_ledger(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        for table in ("replies", "abandoned_replies"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN facts")
        db.execute("PRAGMA user_version=1")
    before = path.read_bytes()
    with Ledger.read(path) as ledger:
        assert ledger.position == 0
    assert path.read_bytes() == before
    with Ledger.open(path, method=Plain) as ledger:
        for rounds in (2, 1):
            server, clients = Server(ledger, RULES), clients_of(ledger, 5)
            for client in clients:
                client.replica.replay(ledger.records())
            for _ in range(rounds):
                one_round(server, clients)
            ledger.verify()
            ledger.rollback(1)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT facts FROM replies").fetchall()[0] == (None,)
        (kept,) = db.execute("SELECT count(*) FROM abandoned_replies WHERE facts IS NULL")
        assert kept == (6,)


def test_a_ledger_of_format_2_keeps_its_replies_and_takes_those_without_a_loss(tmp_path):
    """Format 2 had a loss in every reply."""
    path = tmp_path / "old.db"
    with new_ledger(path) as ledger:
        server, clients = Server(ledger, RULES), clients_of(ledger, 5)
        one_round(server, clients)
        before = told_by(ledger)
    with closing(sqlite3.connect(path)) as db, db:
        (made,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'replies'").fetchone()
        db.execute("ALTER TABLE replies RENAME TO newer")
        db.execute("DROP INDEX replies_by_client")
        db.execute(made.replace("loss REAL", "loss REAL NOT NULL"))
        db.execute("INSERT INTO replies SELECT * FROM newer")
        db.execute("DROP TABLE newer")
        db.execute("CREATE INDEX replies_by_client ON replies (client, round)")
        db.execute("PRAGMA user_version=2")
    for opened in (Ledger.read, Ledger.open):
        with opened(path, method=Plain) as ledger:
            ledger.verify()
            assert told_by(ledger) == before
    with Ledger.open(path, method=Plain) as ledger:
        server = Server(ledger, RULES)
        for plan in server.ask():
            server.tell(replace(clients[plan.client].answer(plan), loss=None))
        closed = server.close()
        assert isinstance(closed, Closed)
        assert closed.loss is None
        assert ledger.rounds()[1].loss is None
        assert {row.loss for row in ledger.replies(1)} == {None}
        assert ledger.median_losses()[1] is None
        ledger.rollback(0)


def told_by(ledger: Ledger) -> list[tuple[int, int, float | None, bytes]]:
    return [(row.round, row.client, row.loss, row.scalars.tobytes()) for row in ledger.replies()]


def test_readers_see_whole_rounds_while_the_writer_goes_on(ledger):
    problems: list[str] = []
    done = threading.Event()

    def read() -> None:
        with Ledger.open(ledger.path) as reader:
            seen = 0
            while not done.is_set() or seen < 40:
                rows = reader.rounds()
                if not seen <= len(rows) or any(
                    r.clients != [0] or 1 not in r.set_aside for r in rows
                ):
                    problems.append(f"{seen} rounds, then {rows}")
                    return
                seen = len(rows)
                reader.verify()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for r in range(40):
        commit(ledger, r)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_second_writer_is_refused_not_interleaved(ledger):
    with Ledger.open(ledger.path) as other:
        commit(ledger, 0)
        with pytest.raises(ProtocolError, match="Does another process write to it"):
            commit(other, 0)
        commit(other, 1)
    assert ledger.position == 2
    ledger.verify()


WRITER = """
import sys
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from {package}.standin import Plain, clients_of, one_round
from {package}.test_ledger import RULES

ledger = Ledger.open(sys.argv[1], method=Plain)
clients = clients_of(ledger, 5)
for client in clients:
    client.replica.replay(ledger.records())
server = Server(ledger, RULES)
print("ready", flush=True)
while True:
    record = one_round(server, clients).record
    print(record.round, record.chain(ledger.chain_at(record.round)).hex(), flush=True)
"""


def test_kill_9_at_any_moment_loses_no_committed_round(tmp_path):
    path = tmp_path / "ledger.db"
    new_ledger(path).close()
    chances = random.Random(0)
    told: dict[int, str] = {}
    code = WRITER.format(package=__package__)
    root = Path(__file__).parents[len(__package__.split("."))]
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=root
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            timer = threading.Timer(chances.uniform(0, 0.15), process.kill)
            timer.start()
            lines = [line.split() for line in process.stdout if line.endswith("\n")]
            timer.join()
        assert process.returncode == -signal.SIGKILL
        told |= {int(number): chain for number, chain in lines}
        with Ledger.open(path) as ledger:
            ledger.verify()
            assert (
                sorted(told) == list(range(len(told)))[: ledger.position]
                or len(told) <= ledger.position
            )
            for number, chain in told.items():
                assert ledger.chain_at(number + 1).hex() == chain
    assert len(told) > 8
    with Ledger.open(path) as ledger, new_ledger(tmp_path / "whole.db") as whole:
        server, clients = Server(whole, RULES), clients_of(whole, 5)
        while whole.position < ledger.position:
            one_round(server, clients)
        assert log_bytes(whole) == log_bytes(ledger)


def test_a_copy_taken_in_the_middle_of_a_write_is_whole(ledger, tmp_path):
    """What a power cut leaves: the files as they were while a transaction was under way."""
    commit(ledger, 0)
    writing = ledger._write()
    with writing as db:
        db.execute("UPDATE records SET bytes = zeroblob(9)")
        copy = tmp_path / "copy.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{ledger.path}{suffix}", f"{copy}{suffix}")
        with Ledger.open(copy) as other:
            other.verify()
            assert other.position == 1
        db.execute("UPDATE records SET bytes = ?", (record_of(0).to_bytes(),))


def test_a_clients_copy_of_the_log(tmp_path):
    """It has the records, the digest before the first of them, and what they weighed."""
    records = [record_of(r) for r in range(3)]
    with new_ledger(tmp_path / "copy.db") as copy:
        copy.follow(records[:1], 5)
        copy.follow(records[1:], 6)
        copy.verify()
        assert [r.to_bytes() for r in copy.records()] == [r.to_bytes() for r in records]
        assert copy.traffic() == (0, 4 * sum(record.scalars for record in records))
        assert [copy.digest_at(r) for r in range(3)] == [5, 6, None]
        assert copy.last_digest() == (1, 6)
        assert copy.losses() == []
        with pytest.raises(ProtocolError):
            copy.follow(records[:1], 5)
