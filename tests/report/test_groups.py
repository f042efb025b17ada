"""Which runs belong together, what they are called, and means over them."""

from __future__ import annotations

import json
from statistics import fmean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.report.gather import read_runs
from hiso.report.groups import curve, differing, group_runs, plus_minus, run_names, windows


def groups_of(runs, *names, labels=None):
    return group_runs(read_runs([runs[name] for name in names]), labels)


def test_seeds_make_a_group(runs):
    groups = groups_of(runs, "hiso-0", "zo", "hiso-1", "unfinished", "bare")
    assert [(g.label, len(g.runs)) for g in groups] == [
        ("hiso, lr 0.01", 2),
        ("zo_sgd, lr 0.01", 1),
        ("hiso, lr 0.02", 1),
        ("fedavg, lr 0.01", 1),
    ]
    assert groups[0].seeds == "0, 1"
    assert "seed" not in groups[0].settings
    assert list(run_names(groups)) == [
        "hiso, lr 0.01, seed 0",
        "hiso, lr 0.01, seed 1",
        "zo_sgd, lr 0.01",
        "hiso, lr 0.02",
        "fedavg, lr 0.01",
    ]


def test_a_name_is_no_longer_than_it_takes(runs):
    assert [g.label for g in groups_of(runs, "hiso-0", "hiso-1")] == ["hiso"]
    assert [g.label for g in groups_of(runs, "hiso-0", "zo")] == ["hiso", "zo_sgd"]


def test_labels_make_groups(runs):
    labels = {runs["hiso-0"]: "A", runs["zo"]: "A", runs["bare"]: "B"}
    groups = groups_of(runs, "hiso-0", "zo", "bare", labels=labels)
    assert [(g.label, len(g.runs)) for g in groups] == [("A", 2), ("B", 1)]
    assert set(groups[0].settings) == set(groups[0].runs[0].settings) - {
        "seed",
        *differing([run.settings for run in groups[0].runs]),
    }
    assert list(run_names(groups)) == [f"A ({runs['hiso-0']})", f"A ({runs['zo']})", "B"]


def test_runs_without_settings_are_called_by_their_folders(copy):
    folders = [copy("bare"), copy("unfinished")]
    for folder in folders:
        (folder / "summary.json").unlink(missing_ok=True)
    bare, unfinished = group_runs(read_runs(folders))
    assert (bare.label, unfinished.label) == (str(folders[0]), "hiso")
    assert bare.seeds == "–"


def test_settings_that_differ():
    some = [{"lr": 1, "method": "a", "own": 3, "mu": 2}, {"lr": 2, "method": "b", "mu": 2}]
    assert differing(some) == ["method", "lr", "own"]


def test_a_curve_is_the_mean_of_those_that_got_there(runs):
    (group,) = groups_of(runs, "hiso-0", "hiso-1")
    series = [run.metric("dev", "loss") for run in group.runs]
    del series[1][6]
    line = curve(group, series)
    assert line.position.tolist() == [0, 3, 6]
    assert line.count == [2, 2, 1]
    for n, at in enumerate((0, 3)):
        both = [each[at] for each in series]
        assert line.mean[n] == fmean(both)
        assert line.deviation[n] == stdev(both)
    assert line.mean[2] == series[0][6]
    assert np.isnan(line.deviation[2])
    first, second = (run.spent["bytes"] for run in group.runs)
    assert line.spent["bytes"].tolist() == [0, (first[3] + second[3]) / 2, first[6]]
    assert line.spent["passes"].tolist() == [0, 18, 36]


@given(st.integers(0, 10**6), st.integers(1, 500))
def test_windows_are_few_and_round(length, most):
    width = windows(length, most)
    assert -(-length // width) <= most
    assert json.dumps(width).rstrip("0") in ("1", "2", "5")
    if width > 1:
        smaller = {"1": width // 2, "2": width // 2, "5": width * 2 // 5}[str(width)[0]]
        assert length > most * smaller


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], None),
        ([None, float("nan")], None),
        ([0.5], 0.5),
        ([0.5, 0.5], 0.5),
        ([0.70, 0.72, None], "0.710 ± 0.014"),
        ([1200.0, 1800.0], "1,500 ± 424"),
        ([1.0, 1.5], "1.25 ± 0.35"),
    ],
)
def test_means_have_deviations(values, text):
    assert plus_minus(values) == text
