"""A comparison from its file to its tables, on digits; real processes, killed on the way."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hiso import simulate
from hiso.lab.compare.spec import read_comparison
from hiso.lab.compare.trials import final_trials, tuning_trials
from hiso.run.launch import evaluate_run
from hiso.run.settings import read_toml

pytestmark = pytest.mark.usefixtures("one_thread")
EXPERIMENTS = Path(__file__).parents[3] / "experiments"
FILE = """
title = "A small one"
reference = "DeComFL"
seeds = [0, 1]

[settings]
task = "digits"
model = "mlp"
batch_size = 8
rounds = 12
eval_every = 4
dev_examples = 50
test_examples = 50

[tuning]
grid = { lr = [0.003, 0.01, 3000.0] }
seeds = [7]
rounds = 8

[[methods]]
label = "DeComFL"
method = "zo_sgd"

[[methods]]
label = "HiSo, frozen"
method = "hiso"
changes = [{ round = 4, set = { nu = 0.0 } }, { round = 10, set = { lr = 0.001 } }]

[[methods]]
label = "the same rate"
method = "hiso"
tuned_as = "HiSo, frozen"

[[methods]]
label = "FedAvg"
method = "fedavg"
rounds = 4
grid = { lr = [0.1] }
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Killed once in the middle, and started again."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "small.toml").write_text(FILE)
    command = [Path(sys.executable).parent / "hiso", "compare", "small.toml", "--out", "out"]
    first = subprocess.Popen([*command, "--jobs", "1"], cwd=folder, start_new_session=True)
    end = time.monotonic() + 120
    while len(list(folder.glob("out/runs/*/summary.json"))) < 2:
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.05)
    tree = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
    for process in tree:
        process.send_signal(signal.SIGKILL)
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("out/runs/*/summary.json")}
    second = subprocess.run([*command, "--json"], cwd=folder, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    for path, at in done.items():
        assert path.stat().st_mtime_ns == at  # what was done was not done again
    result = json.loads(second.stdout)
    assert result == json.loads((folder / "out" / "results.json").read_text())
    return folder


@pytest.fixture(scope="module")
def result(finished):
    return json.loads((finished / "out" / "results.json").read_text())


def test_every_value_of_the_grid_is_reported_and_the_best_is_taken(result):
    rows = {(row["method"], row["values"]["lr"]): row for row in result["grid"]}
    assert len(rows) == 6
    for method in ("DeComFL", "HiSo, frozen"):
        assert rows[method, 3000.0]["failed"] == 1
        kept = [row for (name, _), row in rows.items() if name == method and not row["failed"]]
        best = max(kept, key=lambda row: (row["accuracy"], -row["loss"]))
        assert [row for row in kept if row["chosen"]] == [best]
    final = {row["method"]: row for row in result["methods"]}
    assert final["the same rate"]["values"] == final["HiSo, frozen"]["values"]
    assert final["FedAvg"]["values"] == {"lr": 0.1}


def test_runs_are_those_of_hiso_run(finished, result, tmp_path):
    """Also one whose settings change on the way, and which was killed perhaps."""
    (row,) = (r for r in result["methods"] if r["method"] == "HiSo, frozen")
    common = {
        "task": "digits", "model": "mlp", "batch_size": 8, "eval_every": 4, "method": "hiso",
        "dev_examples": 50, "test_examples": 50, "seed": 1, **row["values"],
    }  # fmt: skip
    simulate(out=tmp_path / "run", rounds=4, **common)
    simulate(out=tmp_path / "run", change={"nu": 0.0, "rounds": 10})
    summary = simulate(out=tmp_path / "run", change={"lr": 0.001, "rounds": 12})
    assert row["digests"][1] == summary["digest"]
    again = list(finished.glob("out/runs/hiso-frozen-*-1-*"))
    assert [evaluate_run(path)["digest"] for path in again] == [summary["digest"]]


def test_figures_are_those_of_the_runs(finished, result):
    for row in result["methods"]:
        for number, seed in enumerate(row["seeds"]):
            (folder,) = (
                path.parent
                for path in finished.glob("out/runs/*/summary.json")
                if json.loads(path.read_text())["digest"] == row["digests"][number]
            )
            lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
            summary = json.loads((folder / "summary.json").read_text())
            assert summary["settings"]["seed"] == seed
            dev = {x["position"]: x["accuracy"] for x in lines if x.get("split") == "dev"}
            rounds = [x for x in lines if x["kind"] == "round"]
            assert row["best"]["values"][number] == max(dev.values())
            assert row["test"]["values"][number] == summary["accuracy_after"]
            assert row["bytes"]["values"][number] == summary["bytes_up"] + summary["bytes_down"]
            spent = 0
            affordable = dev[0]
            for line in rounds:
                spent += line["bytes_up"] + line["bytes_down"]
                if spent <= row["budget"]["bytes"]:
                    affordable = dev.get(line["round"] + 1, affordable)
            assert row["at_equal_bytes"]["values"][number] == affordable
            hits = [position for position, a in dev.items() if a >= row["target"]]
            if row["reached"] == len(row["seeds"]):
                assert row["to_target"]["rounds"]["values"][number] == min(hits)
    best = [row["best"]["mean"] for row in result["methods"] if row["method"] == "DeComFL"]
    assert {row["target"] for row in result["methods"]} == set(best)


def test_tables_and_report(finished, result):
    out = finished / "out"
    page = (out / "results.md").read_text()
    for row in result["methods"]:
        assert f"| {row['method']} |" in page
    with (out / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    (line,) = (x for x in table if (x["method"], x["figure"]) == ("FedAvg", "test"))
    (row,) = (r for r in result["methods"] if r["method"] == "FedAvg")
    assert float(line["mean"]) == row["test"]["mean"]
    assert [float(x) for x in line["by seed"].split()] == row["test"]["values"]
    assert "DeComFL" in (out / "curves.svg").read_text()
    html = (out / "report.html").read_text()
    assert "A small one" in html
    assert "HiSo, frozen" in html


def test_more_seeds_in_the_file_run_those_alone(finished, hiso):
    (finished / "more.toml").write_text(FILE.replace("seeds = [0, 1]", "seeds = [0, 1, 2]"))
    before = set(finished.glob("out/runs/*"))
    done = hiso("compare", finished / "more.toml", "--out", finished / "out")
    assert done.code == 0, done.err
    assert len(set(finished.glob("out/runs/*")) - before) == 4
    assert "A small one" in done.out


COMPARISONS = [path for path in EXPERIMENTS.glob("*.toml") if "methods" in read_toml(path)]


@pytest.mark.parametrize("path", sorted(COMPARISONS), ids=lambda path: path.stem)
def test_presets_are_sound(path):
    comparison = read_comparison(path)
    trials = list(tuning_trials(comparison))
    best = {(t.task, t.model, t.method): t.chosen for t in trials}
    final = list(final_trials(comparison, best))
    cells = len(comparison.methods) * len(comparison.tasks) * len(comparison.models)
    assert len(final) == cells * len(comparison.seeds)
    assert len({trial.folder for trial in trials + final}) == len(trials) + len(final)
