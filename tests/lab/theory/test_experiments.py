"""Experiments from preset to pictures, killed and started again."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from hiso.errors import RunConflict, SettingsError
from hiso.lab.theory.cells import FILE, open_cells
from hiso.lab.theory.experiment import run_experiment
from hiso.lab.theory.presets import KINDS, load_preset
from hiso.run.observer import Silent
from hiso.run.settings import read_toml

PRESETS = sorted((Path(__file__).parents[3] / "experiments").glob("*.toml"))

DIMENSION = """
experiment = "dimension"
grid = [0.25, 0.5, 1.0]
[[problems]]
name = "small"
head = 4
condition = 10
tail_trace = 0.1
tail_share = 0.02
dimensions = [50, 100, 200]
seeds = [2, 2, 1]
methods = ["zo_sgd", "hiso", "oracle", "newton"]
max_rounds = 60
[[problems]]
name = "flat"
dimensions = [20]
seeds = [1]
methods = ["zo_sgd"]
max_rounds = 60
"""


@pytest.fixture
def dimension(hiso):
    path = hiso.folder / "small.toml"
    path.write_text(DIMENSION)
    return path


def test_our_own_presets_are_right():
    kinds = {load_preset(path).experiment for path in PRESETS if "experiment" in read_toml(path)}
    assert kinds == set(KINDS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"dimension"', '"dimensions"'), ["must be one of dimension, curvature, language"]),
        (("grid =", "gird ="), ["gird: unknown key (did you mean 'grid'?)", "grid: missing"]),
        (("head = 4", "heads = 4"), ["heads: unknown key (did you mean 'head'?)"]),
        (("head = 4", ""), ["head, condition, tail_trace and tail_share come together"]),
        (("seeds = [2, 2, 1]", "seeds = [2]"), ["as many entries as dimensions"]),
        (('"newton"]', '"newtons"]'), ["problems.0.methods.3"]),
        (
            ("max_rounds = 60\n[[", "max_rounds = 0\ncurve = 'round'\n[["),
            ["problems.0.max_rounds", "problems.0.curve"],
        ),
        (('["zo_sgd"]', '["oracle"]'), ["without a head an oracle equals zo_sgd"]),
    ],
)
def test_a_wrong_preset_is_refused_with_all_that_is_wrong(tmp_path, change, words):
    path = tmp_path / "wrong.toml"
    assert change[0] in DIMENSION
    path.write_text(DIMENSION.replace(*change))
    with pytest.raises(SettingsError) as error:
        load_preset(path)
    assert all(word in str(error.value) for word in words)


def test_cells_are_kept_and_what_a_kill_left_of_the_last_is_not(tmp_path):
    preset = {"experiment": "x", "lr": 0.1}
    with open_cells(tmp_path / "out", preset) as cells:
        assert cells.get("a", lambda: {"value": 1}) == {"value": 1}
        assert cells.get("a", lambda: pytest.fail("known")) == {"value": 1}
        with pytest.raises(RunConflict, match="at work"), open_cells(tmp_path / "out", preset):
            pass
    path = tmp_path / "out" / FILE
    with path.open("a") as file:
        file.write('{"cell": "b", "val')
    with open_cells(tmp_path / "out", preset) as cells:
        assert "a" in cells
        assert "b" not in cells
        cells.get("b", lambda: {"value": 2})
    assert len(path.read_text().splitlines()) == 3
    with (
        pytest.raises(RunConflict, match="differs in lr"),
        open_cells(tmp_path / "out", preset | {"lr": 0.2}),
    ):
        pass


def test_a_killed_experiment_goes_on_where_it_was(hiso, dimension):
    process = hiso.start("theory", dimension, "--out", "killed")
    path = hiso.folder / "killed" / FILE
    while not path.exists() or len(path.read_text().splitlines()) < 6:
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = path.read_text().rpartition("\n")[0]
    done = hiso("theory", dimension, "--out", "killed", "--json")
    assert done.code == 0, done.err
    assert path.read_text().startswith(before)
    names = [json.loads(line).get("cell") for line in path.read_text().splitlines()]
    assert len(names) == len(set(names))
    whole = hiso("theory", dimension, "--out", "whole", "--json")
    assert whole.err == ""
    assert done.json["rows"] == whole.json["rows"]
    assert done.json["slopes"] == whole.json["slopes"]
    stored = json.loads((hiso.folder / "whole" / "results.json").read_text())
    assert whole.json == {**stored, "folder": "whole"}


def test_results_are_there_for_people_and_scripts(hiso, dimension):
    done = hiso("theory", dimension, "--out", "out")
    assert done.code == 0, done.err
    for word in ("rows", "slopes", "expected", "zo_sgd", "results and pictures are in out"):
        assert word in done.out
    results = json.loads((hiso.folder / "out" / "results.json").read_text())
    assert results["command"] == "hiso theory " + str(dimension) + " --out out"
    assert results["versions"]["hiso"]
    assert results["machine"]["cores"]
    rows = results["rows"]
    with (hiso.folder / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["d"] for row in table] == [str(row["d"]) for row in rows]
    small = [row for row in rows if row["problem"] == "small"]
    kappa = {row["kappa"] for row in small}
    assert max(kappa) - min(kappa) < 1e-9
    for row in small:
        if row["method"] in ("zo_sgd", "hiso"):
            assert row["median"] == pytest.approx(row["expected"], rel=0.6)
    newton = [row["zeta"] for row in small if row["method"] == "newton"]
    assert newton == pytest.approx([50, 100, 200])
    trials = [t for t in results["grid"] if t["entry"] == "small/100/zo_sgd"]
    assert [t["multiple"] for t in trials] == [0.5, 0.25, 1.0]
    best = min((t["rounds"], t["multiple"]) for t in trials if t["rounds"])
    (row,) = (row for row in small if (row["d"], row["method"]) == (100, "zo_sgd"))
    assert row["multiple"] == best[1]
    assert _is_picture(hiso.folder / "out" / "dimension.svg")


def _is_picture(path: Path) -> bool:
    return ElementTree.parse(path).getroot().tag.endswith("svg") and path.stat().st_size < 200_000


# What torch imports for forward differentiation uses what torch itself deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_digits_from_preset_to_picture(tmp_path):
    torch.set_num_threads(1)
    path = tmp_path / "digits.toml"
    path.write_text(
        'experiment = "curvature"\nlr = 0.01\npositions = [3]\nexamples = 8\nprobes = 60\n'
        "eigenvalues = 3\nstanding = [{nu = 0.05, directions = 2, rounds = 4}]\n"
    )
    results = run_experiment(path, tmp_path / "out", Silent())
    (row,) = results["rows"]
    assert row["top_hessian"] == pytest.approx(row["top_hessian_lanczos"], rel=1e-3)
    for kind in ("hessian", "gauss_newton"):
        estimate = row["hutchinson"][kind]
        off = abs(estimate["trace"] - estimate["trace_exact"])
        assert off < 4 * estimate["trace_error"]
        assert estimate["diagonal_within_2_errors"] > 0.8
    # No weight bends its own output where all is piecewise linear: the diagonals are equal.
    assert row["trace_hessian"] == pytest.approx(row["trace_gauss_newton"], rel=1e-6)
    assert abs(row["rho_hessian"]) < 5 * row["rho_chance"]
    assert results["standing"][0]["rounds"] == 4
    assert _is_picture(tmp_path / "out" / "curvature.svg")
    again = run_experiment(path, tmp_path / "out", Silent())
    assert again["rows"] == results["rows"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_whole_runs_with_measured_diagonals(tmp_path):
    torch.set_num_threads(1)
    path = tmp_path / "oracle.toml"
    path.write_text(
        'experiment = "oracle"\ncandidates = ["one", "hiso", "gauss_newton"]\n'
        "grid = [50.0, 0.005]\nseeds = [0, 1]\nrounds = 6\nlook_every = 2\n"
        "measure_every = 4\nexamples = 8\n"
    )
    results = run_experiment(path, tmp_path / "out", Silent())
    assert [row["candidate"] for row in results["rows"]] == ["one", "hiso", "gauss_newton"]
    assert {row["lr"] for row in results["rows"]} == {0.005}
    assert [trial["blown_up"] for trial in results["grid"]] == 3 * [True, False]
    assert {len(trial["accuracies"]) for trial in results["grid"]} == {4}
    losses = [row["loss_by_seed"] for row in results["rows"]]
    assert len({loss[0] for loss in losses}) == 3
    assert results["rows"][0]["loss"] == pytest.approx(sum(losses[0]) / 2)
    # All start from the same network.
    assert len({curve[0] for curve in results["curves"].values()}) == 1
    assert _is_picture(tmp_path / "out" / "oracle.svg")
    again = run_experiment(path, tmp_path / "out", Silent())
    assert again["rows"] == results["rows"]


def test_a_language_model_from_preset_to_picture(tmp_path, tiny_model, reviews):
    torch.set_num_threads(1)
    path = tmp_path / "language.toml"
    path.write_text(
        'experiment = "language"\npositions = [0, 3]\nexamples = 20\nsampled = 3000\n'
        'layers = ["model.norm.weight"]\nlayer_examples = 3\nprobes = 2\neigenvalues = 2\n'
        f'[run]\nmodel = "{tiny_model}"\ndata = "{reviews}"\nlr = 0.001\nclients = 4\n'
        'method = "hiso"\n'
        "directions = 2\nbatch_size = 4\nmax_length = 24\neval_every = 0\n"
    )
    results = run_experiment(path, tmp_path / "out", Silent())
    start, end = results["rows"]
    assert (start["h_mean"], start["h_spread"]) == (1, 0)
    assert end["h_spread"] > 0
    assert end["h_spread"] == pytest.approx(end["h_spread_other_seed"], rel=0.5)
    assert abs(end["rho_gauss_newton"]) < 0.1
    assert start["trace_gauss_newton_error"] > 0
    assert {row["position"] for row in results["oracles"]} == {0, 3}
    assert [layer["layer"] for layer in results["layers"]] == ["model.norm.weight"]
    assert _is_picture(tmp_path / "out" / "language.svg")
    again = run_experiment(path, tmp_path / "out", Silent())
    assert again["rows"] == results["rows"]
    whole = path.read_text()
    path.write_text(whole + "rounds = 9\n")
    with pytest.raises(SettingsError, match="leave rounds away"):
        run_experiment(path, tmp_path / "other", Silent())
    path.write_text(whole.replace('"hiso"', '"zo_sgd"'))
    with pytest.raises(SettingsError, match="zo_sgd learns no diagonal h"):
        run_experiment(path, tmp_path / "third", Silent())
