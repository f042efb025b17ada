"""A run whose ledger or snapshot was altered is never taken for the run that it was."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from hiso import simulate
from hiso.errors import Diverged, ProtocolError, RunConflict
from hiso.ring.ledger.ledger import Ledger
from hiso.run.inspect import inspect_run
from hiso.run.launch import evaluate_run
from hiso.run.observer import Silent
from hiso.run.snapshots import replay

from ..process import flags

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, small_run) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    simulate(out=out, **small_run, snapshot_every=2)
    return out


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "copy"))


def alter(folder: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:
        db.execute(statement, values)


@pytest.mark.parametrize("keep_snapshots", [True, False])
def test_one_bit_of_a_coefficient_is_noticed_by_whatever_reads_the_run(run, keep_snapshots):
    if not keep_snapshots:
        shutil.rmtree(run / "snapshots")
    with closing(sqlite3.connect(run / "ledger.sqlite")) as db:
        (data,) = db.execute("SELECT bytes FROM records WHERE round = 3").fetchone()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    alter(run, "UPDATE records SET bytes = ? WHERE round = 3", bytes(flipped))
    for read in (lambda: evaluate_run(run), lambda: inspect_run(run, 1), lambda: simulate(out=run)):
        with pytest.raises(ProtocolError):
            read()


def test_an_identity_that_was_altered_is_noticed(run):
    alter(run, "UPDATE run SET identity = replace(identity, '\"seed\":0', '\"seed\":1')")
    for read in (lambda: evaluate_run(run), lambda: inspect_run(run, 1), lambda: simulate(out=run)):
        with pytest.raises((ProtocolError, RunConflict)):
            read()


@pytest.mark.parametrize("key", ["lr", "sample", "mu", "eval_every"])
def test_settings_that_were_altered_are_noticed(run, key):
    with Ledger.open(run / "ledger.sqlite") as ledger:
        text = f'"{key}":{json.dumps(ledger.settings[key])}'
    alter(run, "UPDATE run SET settings = replace(settings, ?, ?)", text, text[:-1] + "5")
    for read in (lambda: evaluate_run(run), lambda: inspect_run(run, 1), lambda: simulate(out=run)):
        with pytest.raises(ProtocolError):
            read()


def test_a_ledger_from_before_goes_on_and_is_sealed_when_settings_change(run, base):
    expected = evaluate_run(run)
    alter(run, "DROP TABLE seal")
    assert evaluate_run(run) == expected
    assert simulate(out=run)["rounds"] == 6
    simulate(out=run, change={"rounds": 7})
    alter(run, "UPDATE run SET settings = replace(settings, '\"rounds\":7', '\"rounds\":8')")
    with pytest.raises(ProtocolError):
        evaluate_run(run)


def test_a_replica_that_starts_elsewhere_is_noticed(run):
    class Elsewhere:
        """Replays, but from the root of another run."""

        position, chain = 0, bytes(32)

        def replay(self, records) -> None:
            for record in records:
                self.chain, self.position = record.chain(self.chain), self.position + 1

    with Ledger.open(run / "ledger.sqlite") as ledger, pytest.raises(ProtocolError):
        replay(Elsewhere(), ledger, 6, Silent())  # pyright: ignore[reportArgumentType]


def test_hyper_parameters_come_from_the_log_not_from_a_snapshot(run):
    """As snapshots of before have them, outside their digest."""
    expected = evaluate_run(run)
    (newest,) = sorted((run / "snapshots").glob("*"))[-1:]
    data = newest.read_bytes()
    assert b"hyper" not in data[:2000]
    resumed = simulate(out=run, change={"rounds": 8})
    shutil.rmtree(run / "snapshots")
    assert evaluate_run(run, position=6) == expected
    assert evaluate_run(run)["digest"] == resumed["digest"]


def test_a_snapshot_of_another_log_is_passed_over(run, tmp_path, base):
    """Of the same model, method and position; only the records differ."""
    other = tmp_path / "other"
    simulate(out=other, **base, seed=5, snapshot_every=2)
    expected = evaluate_run(run)
    shutil.rmtree(run / "snapshots")
    shutil.copytree(other / "snapshots", run / "snapshots")
    assert evaluate_run(run) == expected


def test_passes_are_those_of_the_scheme_that_each_round_had(tmp_path, base):
    """Rolled back beyond a change of scheme, rounds are measured again, in the new way."""
    base |= {"eval_every": 0}
    out = tmp_path / "run"
    simulate(out=out, **base | {"rounds": 4})
    simulate(out=out, change={"scheme": "central", "rounds": 5})
    simulate(out=out, rollback=2)
    passes = [line["passes"] for line in inspect_run(out, 5)["rounds"]]
    assert passes == [2 * 3, 2 * 3, 2 * 4, 2 * 4, 2 * 4]


def test_a_clients_copy_of_a_log_that_blew_up_says_so(tmp_path, base):
    """It has no losses, so no advice where to go back to."""
    out = tmp_path / "run"
    wild = {"lr": 3e38, "rounds": 1, "method": "zo_sgd", "eval_every": 0}
    with pytest.raises(Diverged) as caught:
        simulate(out=out, **base | wild)
    assert (caught.value.position, caught.value.lr) == (0, pytest.approx(1.5e38))
    alter(out, "UPDATE records SET loss = NULL")
    alter(out, "DELETE FROM replies")
    with pytest.raises(Diverged) as caught:
        evaluate_run(out)
    assert caught.value.position is None


class Rival(Silent):
    """Lets another process run in the folder while this one prepares."""

    def __init__(self, work) -> None:
        self.work, self.done = work, None

    @contextmanager
    def phase(self, text, total=None):
        if text == "preparing kernels" and self.done is None:
            self.done = self.work()
            assert self.done.code == 0, self.done.err
        yield lambda _: None


@pytest.mark.parametrize("same", [False, True])
def test_a_run_that_another_process_began_meanwhile_is_left_alone(tmp_path, base, hiso, same):
    out = tmp_path / "run"
    theirs = base | {"rounds": 2, "seed": 0 if same else 111}
    rival = Rival(lambda: hiso("run", *flags(theirs), "--out", out, "--json"))
    with pytest.raises(RunConflict):
        simulate(out=out, observer=rival, **base)
    assert evaluate_run(out)["digest"] == rival.done.json["digest"]
    assert inspect_run(out, 1)["settings"]["seed"] == theirs["seed"]


def test_a_run_that_another_process_altered_meanwhile_is_left_alone(run, hiso):
    rival = Rival(lambda: hiso("run", "--out", run, "--change", "rounds=7", "--json"))
    with pytest.raises(RunConflict):
        simulate(out=run, observer=rival, change={"rounds": 9})
    assert evaluate_run(run)["position"] == 7
