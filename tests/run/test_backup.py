"""Copies of folders that are in use."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from hiso.errors import ProtocolError, RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.backup import back_up
from hiso.run.observer import Silent

from ..modes import readable_by_others
from ..ring.standin import new_ledger
from ..ring.test_ledger import commit


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ca.pem").write_text("a key")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    return tmp_path


def test_a_ledger_in_use_is_copied_with_its_last_commit(here):
    with new_ledger(here / "runs" / "first" / "ledger.sqlite") as ledger:
        for r in range(3):
            commit(ledger, r)
        assert (here / "runs" / "first" / "ledger.sqlite-wal").stat().st_size
        done = back_up([Path("keys"), Path("runs")], Path("copy"), Silent())
        commit(ledger, 3)
    assert (done.files, done.databases) == (2, 1)
    names = sorted(str(p.relative_to("copy")) for p in Path("copy").rglob("*") if p.is_file())
    assert names == ["keys/ca.pem", "runs/first/ledger.sqlite"]
    assert Path("copy/keys/ca.pem").read_text() == "a key"
    assert readable_by_others(Path("copy")) == []
    with Ledger.read(Path("copy/runs/first/ledger.sqlite")) as copy:
        copy.verify()
        assert copy.position == 3
    shutil.rmtree("runs")
    shutil.copytree("copy", ".", dirs_exist_ok=True)
    with Ledger.open(here / "runs" / "first" / "ledger.sqlite") as restored:
        commit(restored, 3)
        assert restored.position == 4


def test_a_folder_that_exists_is_left_alone(here):
    (here / "copy").mkdir()
    with pytest.raises(RunConflict):
        back_up([Path("keys")], Path("copy"), Silent())
    assert list((here / "copy").iterdir()) == []


@pytest.mark.parametrize(
    ("paths", "to"),
    [(["nothing"], "copy"), ([".."], "copy"), (["keys"], "keys/copy"), (["."], "x")],
)
def test_what_cannot_be_copied_is_told(here, paths, to):
    with pytest.raises(SettingsError):
        back_up([Path(path) for path in paths], Path(to), Silent())
    assert sorted(path.name for path in here.iterdir()) == ["keys", "runs"]


def test_a_damaged_database_leaves_no_copy(here):
    path = here / "runs" / "first" / "state.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t (x TEXT)")
        db.executemany("INSERT INTO t VALUES (?)", [("y" * 500,)] * 100)
    data = bytearray(path.read_bytes())
    data[4096:8192] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(ProtocolError):
        back_up([Path("runs")], Path("copy"), Silent())
    assert sorted(path.name for path in here.iterdir()) == ["keys", "runs"]


def test_the_command(here, hiso):
    done = hiso("backup", here / "copy", "keys", "--json")
    assert done.json == {"folder": str(here / "copy"), "files": 1, "databases": 0, "bytes": 5}
