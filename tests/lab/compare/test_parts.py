"""The parts of a comparison: its file's errors, its runs' names, its figures by hand."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import SettingsError
from hiso.lab.compare.figures import Run as Outcome
from hiso.lab.compare.figures import choose, spread
from hiso.lab.compare.measure import Curve, curve_of
from hiso.lab.compare.picture import draw_curves
from hiso.lab.compare.spec import read_comparison
from hiso.lab.compare.trials import Trial, tuning_trials
from hiso.report.parts import PALETTE
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.results import Round
from hiso.workloads.text.tasks import TASKS

WRONG = """
title = "wrong"
reference = "nobody"
colour = "red"

[settings]
rounds = 0
lrr = 1

[[methods]]
label = "a"
method = "zo_sgd"
nu = 0.1

[[methods]]
label = "a"
method = "hiso"
changes = [{ round = 3, set = { seed = 1 } }]
"""


def read(path, text):
    path.write_text(text)
    return read_comparison(path)


def test_all_that_is_wrong_is_said(tmp_path):
    path = tmp_path / "wrong.toml"
    with pytest.raises(SettingsError) as caught:
        read(path, WRONG)
    assert "colour" in str(caught.value)
    assert "'a' is used twice" in str(caught.value)
    mended = WRONG.replace('colour = "red"\n', "").replace(
        'label = "a"\nmethod = "h', 'label = "b"\nmethod = "h'
    )
    with pytest.raises(SettingsError) as caught:
        read(path, mended)
    assert "reference = 'nobody' is not a method of this comparison: a, b" in str(caught.value)
    assert "b: seed cannot change in a run" in str(caught.value)
    mended = mended.replace('reference = "nobody"\n', "").replace("seed = 1", "nu = 0.0")
    with pytest.raises(SettingsError) as caught:
        read(path, mended)
    for part in ("lrr: unknown key", "rounds = 0", "a: ", "zo_sgd has no such hyper-parameter"):
        assert part in str(caught.value)
    with pytest.raises(SettingsError, match="cannot read settings"):
        read_comparison(tmp_path / "missing.toml")


def test_a_baseline_takes_no_setting_that_it_lacks(tmp_path):
    text = 'title = "x"\n[[methods]]\nlabel = "a"\nmethod = "fedavg"\ndirections = 3\n'
    with pytest.raises(SettingsError, match="a: directions: fedavg has no such setting"):
        read(tmp_path / "x.toml", text)


def test_tasks_are_known_and_have_the_metric(tmp_path):
    text = """
title = "x"
metric = "rougeL"
[[methods]]
label = "a"
method = "hiso"
[[tasks]]
label = "by default"
[[tasks]]
label = "summaries"
task = "xsum"
[[tasks]]
label = "films"
task = "sst2"
[[tasks]]
label = "texts"
task = "text"
[[tasks]]
label = "images"
task = "digits"
model = "cnn"
[[tasks]]
label = "misspelt"
task = "sst"
"""
    with pytest.raises(SettingsError) as caught:
        read(tmp_path / "x.toml", text)
    assert str(caught.value).splitlines()[1:] == [
        "  metric = rougeL: rotten_tomatoes has accuracy, f1",
        "  metric = rougeL: sst2 has accuracy, f1",
        "  metric = rougeL: text has none of which more is better",
        "  metric = rougeL: digits has accuracy",
        f"  a: there is no task 'sst'. Did you mean sst2? Tasks: {', '.join(TASKS)}.",
    ]


def test_runs_are_named_by_their_settings(tmp_path):
    text = """
title = "x"
[settings]
rounds = 9
[tuning]
grid = { lr = [0.1, 0.2], nu = [0.1] }
rounds = 4
[[methods]]
label = "HiSo"
method = "hiso"
changes = [{ round = 2, set = { nu = 0.0 } }, { round = 5, set = { nu = 0.1 } }]
"""
    trials = list(tuning_trials(read(tmp_path / "x.toml", text)))
    assert [trial.chosen for trial in trials] == [{"lr": 0.1, "nu": 0.1}, {"lr": 0.2, "nu": 0.1}]
    assert {trial.rounds for trial in trials} == {4}
    assert [change.round for change in trials[0].changes] == [2]
    again = list(tuning_trials(read(tmp_path / "x.toml", text)))
    assert [trial.folder for trial in again] == [trial.folder for trial in trials]
    spelt = text.replace("[settings]", "[settings]\nbatch_size = 16")  # the default
    same = list(tuning_trials(read(tmp_path / "x.toml", spelt)))
    assert [trial.folder for trial in same] == [trial.folder for trial in trials]
    other = text.replace("round = 2", "round = 3")
    changed = list(tuning_trials(read(tmp_path / "x.toml", other)))
    assert not {trial.folder for trial in changed} & {trial.folder for trial in trials}


ROUNDS = [Round(0, 1.0, [0], 10, 5, 6), Round(1, 1.0, [1], 10, 15, 6), Round(2, 1.0, [0], 10, 5, 6)]
EVALUATIONS = [
    Evaluation(0, "dev", {"accuracy": 0.5, "loss": 1.0}),
    Evaluation(0, "test", {"accuracy": 0.9, "loss": 1.0}),
    Evaluation(2, "dev", {"accuracy": 0.7, "loss": 0.8}),
    Evaluation(3, "dev", {"accuracy": 0.6, "loss": 0.7}),
]


def test_a_curve_by_hand():
    curve = curve_of(ROUNDS, EVALUATIONS, "accuracy")
    assert curve == Curve([0, 2, 3], [0.5, 0.7, 0.6], [0, 40, 55], [0, 12, 18], [1.0, 0.8, 0.7])
    assert curve.best == 0.7
    assert [curve.first(target) for target in (0.5, 0.65, 0.71)] == [0, 1, None]
    noisy = replace(curve, loss=[0.5, 0.9, 0.4])
    assert [noisy.first(target, "last loss") for target in (0.9, 0.6, 0.3)] == [0, 2, None]
    assert [curve.at(curve.bytes, budget) for budget in (0, 39, 40, 54, 55, 99)] == [
        0.5, 0.5, 0.7, 0.7, 0.6, 0.6,
    ]  # fmt: skip


def test_a_value_with_which_a_run_failed_is_out():
    def outcome(lr, seed, accuracy, loss=1.0):
        curve = None if accuracy is None else Curve([0], [accuracy], [0], [0], [loss])
        return Outcome(Trial("t", "m", "a", {"lr": lr}, seed, {}), None, curve)

    runs = [outcome(1, 0, 0.9), outcome(1, 1, None)]
    runs += [outcome(2, 0, 0.6, 0.5), outcome(2, 1, 0.8, 0.5)]
    runs += [outcome(3, 0, 0.7, 0.4), outcome(3, 1, 0.7, 0.4)]
    best, grid = choose(runs, "best metric")
    assert best == {("t", "m", "a"): {"lr": 3}}  # as good as 2, with the lower loss
    assert [(row["failed"], row["chosen"]) for row in grid] == [(1, False), (0, False), (0, True)]
    runs += [outcome(4, 0, 0.5, 0.3), outcome(4, 1, 0.5, 0.3)]
    assert choose(runs, "last loss")[0] == {("t", "m", "a"): {"lr": 4}}


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=8))
def test_spread_is_that_of_the_library(values):
    found = spread(values)
    assert found["mean"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert found["deviation"] == statistics.stdev(values)


def test_spread_of_too_few():
    assert spread([]) == {"mean": None, "deviation": None, "values": []}
    assert spread([2.0]) == {"mean": 2.0, "deviation": None, "values": [2.0]}


def test_a_method_looks_alike_wherever_it_is_drawn(tmp_path):
    """Also where another one came to nothing."""
    curve = Curve([0, 1, 2], [0.5, 0.6, 0.7], [0, 10, 20], [0, 6, 12], [1.0, 0.9, 0.8])
    runs = [
        Outcome(Trial(task, "", method, {}, 0, {}), None, None if lost else curve)
        for task, method, lost in (
            ("a", "x", False),
            ("a", "y", False),
            ("b", "x", True),
            ("b", "y", False),
        )
    ]
    draw_curves(runs, "accuracy", tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text().lower()
    first, second = (
        len(re.findall(f'fill: none;[^"]*stroke: {colour.lower()}', text)) for colour in PALETTE[:2]
    )
    assert (first, second) == (3 + 1, 6 + 1)  # axes, and the legend
