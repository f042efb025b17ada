"""Runs that are interrupted, changed, rolled back, moved, or that blow up."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hiso import simulate
from hiso.errors import Diverged, ProtocolError, RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Change
from hiso.run.inspect import inspect_run
from hiso.run.launch import evaluate_run
from hiso.run.observer import Silent
from hiso.run.results import Round

from ..process import Hiso, flags
from ..tiny import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder: Path) -> dict[str, str]:
    """All that the folder says, apart from how SQLite lays out its pages."""
    with sqlite3.connect(folder / "ledger.sqlite") as db:
        dump = "\n".join(db.iterdump())
    db.close()
    texts = {p.name: p.read_text() for p in folder.iterdir() if p.suffix in (".json", ".jsonl")}
    return {"ledger": dump, **texts}


def rounds_in(folder: Path) -> int:
    try:
        db = sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)
        with db:
            return db.execute("SELECT count(*) FROM records").fetchone()[0]
    except sqlite3.OperationalError:
        return -1


def without_times(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


def test_a_run_that_is_killed_again_and_again_is_the_same_run(tmp_path, base, hiso):
    base |= {"rounds": 40, "eval_every": 7, "local_steps": 2, "snapshot_every": 9}
    whole = hiso("run", *flags(base), "--out", "whole", "--json")
    assert whole.code == 0, whole.err

    folder, rng, kills = tmp_path / "killed", random.Random(1), 0
    targets = iter([-1, 0, *sorted(rng.sample(range(1, 39), 4))])  # -1: before there is a ledger
    while True:
        process = hiso.start("run", *flags(base), "--out", "killed", "--json")
        target = next(targets, None)
        while target is not None and process.is_alive() and rounds_in(folder) < target:
            time.sleep(0.002)
        if target is not None:
            time.sleep(rng.random() / 20)
            process.kill()
        done = hiso.end(process)
        if done.code == 0:
            break
        assert done.code == -signal.SIGKILL
        kills += 1
        assert not (folder / "summary.json").exists()
    assert kills >= 4
    for key in ("digest", "chain", "bytes_up", "bytes_down", "metrics_before", "metrics_after"):
        assert done.json[key] == whole.json[key]
    assert without_times(folder) == without_times(tmp_path / "whole")
    assert not list(folder.rglob("*.partial"))


def test_a_finished_run_stays_as_it_is(tmp_path, base):
    first = simulate(out=tmp_path / "run", **base)
    before = content(tmp_path / "run")
    assert simulate(out=tmp_path / "run", **base) == first
    assert simulate(out=tmp_path / "run") == first | {}  # what is not given counts as the same
    assert content(tmp_path / "run") == before
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "summary.json").write_text("{")
    simulate(out=tmp_path / "run", **base)
    assert content(tmp_path / "run")["metrics.jsonl"] == before["metrics.jsonl"]


def test_other_settings_are_refused_with_what_differs(tmp_path, base, hiso):
    simulate(out=tmp_path / "run", **base)
    before = content(tmp_path / "run")
    other = base | {"lr": 0.5, "seed": 3, "method": "zo_sgd"}
    done = hiso("run", *flags(other), "--out", "run")
    assert done.code == 3
    assert "lr: 0.01 in the run, 0.5 asked for" in done.err
    assert "seed: 0 in the run, 3 asked for" in done.err
    assert "method: 'hiso' in the run, 'zo_sgd' asked for" in done.err
    assert "clients" not in done.err
    assert "--out FOLDER for a new run, --change lr=0.5 to change this run" in done.err
    assert done.out == ""
    with pytest.raises(SettingsError, match="sample = -1"):
        simulate(out=tmp_path / "run", **base | {"sample": -1})
    assert content(tmp_path / "run") == before


def test_the_methods_own_default_is_no_other_setting(tmp_path, base):
    default = {key: value for key, value in base.items() if key != "lr"}
    first = simulate(out=tmp_path / "run", **default)
    assert first["settings"]["lr"] == 3e-4
    assert simulate(out=tmp_path / "run", lr=3e-4, nu=0.05, feed="first", **default) == first


def test_changes_hold_from_here_on(tmp_path, base, hiso):
    folder = tmp_path / "run"
    simulate(out=folder, **base)
    words = ["--change", "lr=0.02", "--change", "rounds=10", "--change", "scheme=central"]
    command = ["run", *flags(base), "--out", "run", *words, "--json"]
    done = hiso(*command)
    assert done.code == 0, done.err
    assert done.json["rounds"] == 10
    assert done.json["settings"]["lr"] == 0.02
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert ledger.changes() == [
            Change(6, "lr", 0.01, 0.02),
            Change(6, "rounds", 6, 10),
            Change(6, "scheme", "forward", "central"),
        ]
        changed = {r.round: r.changes for r in ledger.records() if r.changes}
        assert changed == {6: {"lr": pytest.approx(0.02)}}
    assert evaluate_run(folder)["digest"] == done.json["digest"]
    assert evaluate_run(folder, position=6)["position"] == 6
    before = content(folder)
    again = hiso(*command)
    assert again.json == done.json
    assert content(folder) == before


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"seed": 1}, RunConflict, "seed cannot change in a run"),
        ({"clients": 9}, RunConflict, "Changeable: .*lr"),
        ({"test_examples": 3}, RunConflict, "test_examples cannot change"),
        ({"learning_rate": 1}, SettingsError, "learning_rate: unknown key"),
        ({"round": 1}, SettingsError, "did you mean 'rounds'"),
        ({"lr": -1}, SettingsError, "lr = -1"),
        ({"beta": 0.5}, SettingsError, "beta: hiso has no such hyper-parameter"),
        ({"sample": 5}, SettingsError, "sample = 5"),
        ({"mu": 1e-60}, SettingsError, "mu = 1e-60"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_may_not_change_leaves_the_run_alone(tmp_path, finished, base, change, error, words):
    before = content(finished)
    with pytest.raises(error, match=words):
        simulate(out=finished, change=change, **base)
    assert content(finished) == before


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_model, reviews) -> Path:
    folder = tmp_path_factory.mktemp("original")
    settings = {"model": str(tiny_model), "data": str(reviews), "method": "hiso", "lr": 0.01}
    settings |= {
        "clients": 4,
        "sample": 2,
        "rounds": 6,
        "directions": 2,
        "batch_size": 4,
        "max_length": 24,
    }
    simulate(out=folder / "run", **settings, eval_every=3, snapshot_every=2)
    return folder / "run"


@pytest.fixture
def finished(tmp_path, original) -> Path:
    """A copy of a finished run with snapshots, to do anything with."""
    shutil.copytree(original, tmp_path / "finished")
    return tmp_path / "finished"


def test_a_model_on_disk_that_has_changed_is_named(tmp_path, base, tiny_model, reviews):
    model, data = tmp_path / "model", tmp_path / "data.csv"
    shutil.copytree(tiny_model, model)
    shutil.copy(reviews, data)
    base |= {"model": str(model), "data": str(data)}
    first = simulate(out=tmp_path / "run", **base)
    before = content(tmp_path / "run")

    data.write_text(data.read_text().replace("film 7 was", "film 7 is"))
    with pytest.raises(RunConflict, match=r"  data\.fingerprint"):
        simulate(out=tmp_path / "run", **base)
    shutil.copy(reviews, data)
    shutil.rmtree(model)
    save_model(model, "llama", seed=1)
    with pytest.raises(RunConflict, match=r"  model\.fingerprint") as caught:
        simulate(out=tmp_path / "run", **base)
    assert "  data." not in str(caught.value)
    with pytest.raises(RunConflict, match=r"  model\.fingerprint"):
        evaluate_run(tmp_path / "run")
    assert content(tmp_path / "run") == before

    moved = {"model": str(tiny_model), "data": str(reviews)}  # the same content in other places
    with pytest.raises(RunConflict, match="model: "):
        simulate(out=tmp_path / "run", **base | moved)
    done = simulate(out=tmp_path / "run", change=moved)
    assert (done["digest"], done["chain"]) == (first["digest"], first["chain"])
    assert evaluate_run(tmp_path / "run")["digest"] == first["digest"]


def test_rollback_leads_to_the_same_end(finished):
    with Ledger.open(finished / "ledger.sqlite") as ledger:
        up, down = ledger.traffic()
    before = json.loads((finished / "summary.json").read_text())
    after = simulate(out=finished, rollback=3)
    assert (after["digest"], after["chain"]) == (before["digest"], before["chain"])
    assert after["bytes_up"] == up + 3 * 2 * 2 * 4  # what was sent was sent
    assert after["bytes_down"] > down
    with pytest.raises(ProtocolError, match=r"cannot roll back to position 7: the log has 0..6"):
        simulate(out=finished, rollback=7)
    other = simulate(out=finished, rollback=3, change={"lr": 0.03})
    assert other["digest"] != before["digest"]
    assert other["metrics_before"] == before["metrics_before"]
    assert len(without_times(finished)) == len(without_times(finished.parent / "finished"))


def snapshots(folder: Path) -> list[int]:
    return [int(p.stem.split("-")[1]) for p in sorted((folder / "snapshots").iterdir())]


def test_snapshots_are_used_and_can_be_deleted(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert snapshots(finished) == [4, 6]
    for path in sorted((finished / "snapshots").iterdir(), reverse=True):
        assert evaluate_run(finished)["digest"] == summary["digest"]
        path.unlink()
    assert evaluate_run(finished)["digest"] == summary["digest"]


def test_snapshots_of_rounds_set_aside_are_ignored(finished):
    done = simulate(out=finished, rollback=1, change={"lr": 0.02, "snapshot_every": 4})
    assert snapshots(finished) == [4]
    assert evaluate_run(finished)["digest"] == done["digest"]
    shutil.rmtree(finished / "snapshots")
    assert evaluate_run(finished)["digest"] == done["digest"]


class Phases(Silent):
    """Keeps the names of what took time."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def phase(self, text: str, total: int | None = None):
        self.texts.append(text)
        return super().phase(text, total)


@pytest.mark.parametrize(
    ("position", "replayed"), [(None, None), (5, 1), (4, None), (3, 3), (0, None)]
)
def test_a_snapshot_saves_replay(finished, position, replayed):
    phases = Phases()
    evaluate_run(finished, position=position, observer=phases)
    texts = [text for text in phases.texts if text.startswith("replaying")]
    assert texts == ([] if replayed is None else [f"replaying {replayed} rounds"])


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "foreign"])
def test_a_damaged_snapshot_is_refused(finished, damage):
    path = finished / "snapshots" / "position-00000006.safetensors"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "foreign":
        save_file({"weights": torch.zeros(3)}, path)
    else:
        with safe_open(path, "pt") as file:
            facts = file.metadata()
        buffers = load_file(path)
        buffers["h"].view(torch.int32)[0] ^= 1
        save_file(buffers, path, metadata=facts)
    with pytest.raises(ProtocolError, match="is damaged: delete it"):
        evaluate_run(finished)
    path.unlink()
    assert evaluate_run(finished)["position"] == 6


@pytest.mark.parametrize("lr", [30.0, 1e30])
def test_a_run_that_blows_up_says_how_to_go_on(tmp_path, base, hiso, lr):
    base |= {"lr": lr, "rounds": 30, "eval_every": 0, "method": "zo_sgd"}
    done = hiso("run", *flags(base), "--out", "run")
    assert done.code == 4, done.err
    assert "--rollback" in done.err
    assert f"--change lr={lr / 2:.3g}" in done.err
    at = int(done.err.split("--rollback ")[1].split()[0])
    told = inspect_run(tmp_path / "run", last=30)
    assert told["facts"]["rounds"] < 30
    assert told["rounds"][at]["loss"] < 5
    again = ["run", "--out", "run", "--rollback", at, "--change", "lr=0.001", "--json"]
    healed = hiso(*again)
    assert healed.code == 0, healed.err
    assert healed.json["rounds"] == 30
    assert healed.json["loss_after"] < 5


def test_weights_that_are_no_numbers_are_not_evaluated(tmp_path, base):
    base |= {"lr": 3e38, "rounds": 1, "method": "zo_sgd", "eval_every": 0}
    for work in (
        lambda: simulate(out=tmp_path / "run", **base),
        lambda: evaluate_run(tmp_path / "run"),
    ):
        with pytest.raises(Diverged, match="at position 1, loss is nan on the test split") as error:
            work()
        assert (error.value.position, error.value.lr) == (0, 1.5e38)
    healed = simulate(out=tmp_path / "run", rollback=0, change={"lr": 0.01})
    assert healed["rounds"] == 1


def test_a_damaged_ledger_is_refused(finished):
    with sqlite3.connect(finished / "ledger.sqlite") as db:
        db.execute("UPDATE records SET bytes = (SELECT bytes FROM records WHERE round = 1)")
    db.close()
    for work in (lambda: simulate(out=finished), lambda: inspect_run(finished, 5)):
        with pytest.raises(ProtocolError, match="damaged from round 0 on"):
            work()


class Rival(Silent):
    """Starts another process on the same run at the first round that it sees."""

    def __init__(self, hiso: Hiso, folder: Path) -> None:
        self.hiso, self.folder, self.done = hiso, folder, None

    def round(self, done: Round) -> None:
        self.done = self.done or self.hiso("run", "--out", self.folder)


def test_two_processes_do_not_run_one_run(tmp_path, base, hiso):
    rival = Rival(hiso, tmp_path / "run")
    simulate(out=tmp_path / "run", observer=rival, **base)
    assert rival.done is not None
    assert rival.done.code == 3
    assert "another process is at work on the run in" in rival.done.err
    assert hiso("run", "--out", tmp_path / "run").code == 0


def test_a_run_can_be_watched_from_elsewhere(tmp_path, base, hiso):
    class Watcher(Silent):
        seen = 0

        def round(self, done: Round) -> None:
            Watcher.seen = inspect_run(tmp_path / "run", 1)["facts"]["rounds"]

    simulate(out=tmp_path / "run", observer=Watcher(), **base)
    assert Watcher.seen == 6


def test_a_run_of_hiso_0_1_goes_on_under_todays_names(tmp_path, base):
    """Then P was `perturbations`, and `directions` was shared or per-client."""
    base |= {"directions": 3, "per_client": True, "eval_every": 0}
    whole = simulate(out=tmp_path / "whole", **base | {"rounds": 6})
    simulate(out=tmp_path / "old", **base | {"rounds": 2})
    simulate(out=tmp_path / "old", change={"directions": 2, "rounds": 4})
    simulate(out=tmp_path / "old", change={"directions": 3}, rollback=2, rounds=4)
    path = tmp_path / "old/ledger.sqlite"
    with sqlite3.connect(path) as db:
        (text,) = db.execute("SELECT settings FROM run").fetchone()
        settings = json.loads(text)
        settings["perturbations"] = settings.pop("directions")
        settings["directions"] = "per-client" if settings.pop("per_client") else "shared"
        db.execute("UPDATE run SET settings = ?", (json.dumps(settings),))
        db.execute("UPDATE changes SET key = 'perturbations' WHERE key = 'directions'")
        db.execute("DROP TABLE seal")
    db.close()
    with Ledger.read(path) as ledger:
        assert (ledger.settings["directions"], ledger.settings["per_client"]) == (3, True)
        assert {change.key for change in ledger.changes()} == {"directions", "rounds"}
    with pytest.raises(RunConflict) as caught:
        simulate(out=tmp_path / "old", directions=2)
    assert caught.value.settings == {"directions": (3, 2)}
    assert simulate(out=tmp_path / "old", change={"rounds": 6})["digest"] == whole["digest"]
