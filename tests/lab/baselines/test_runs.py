"""Whole runs: their files, their bytes, what they share with hiso's own, and going on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hiso import simulate
from hiso.errors import Diverged, ProtocolError, RunConflict, SettingsError
from hiso.lab.baselines.baseline_run import train
from hiso.lab.baselines.baseline_settings import BASELINES
from hiso.run.observer import Silent

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS: dict[str, Any] = {
    "task": "digits", "model": "cnn", "batch_size": 16, "rounds": 6, "eval_every": 2,
    "local_steps": 2, "client_examples": 20, "partition": "dirichlet",
}  # fmt: skip
GOOD: dict[str, dict[str, float]] = {
    "fedavg": {"lr": 0.3},
    "fedadam": {"lr": 0.1, "server_lr": 0.03},
    "fedyogi": {"lr": 0.1, "server_lr": 0.03},
    "fedadagrad": {"lr": 0.1, "server_lr": 0.1},
    "fedzo": {"lr": 0.01},
}


def lines_of(folder: Path, kind: str | None = None) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if kind in (None, line["kind"])]


def without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]


@pytest.fixture(scope="module")
def hiso_run(tmp_path_factory) -> tuple[Path, dict]:
    """A run of hiso whose weights stay where they are, so that its losses tell its batches."""
    out = tmp_path_factory.mktemp("hiso") / "run"
    return out, simulate(out=out, method="zo_sgd", lr=0, per_client=True, **DIGITS)


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_is_like_hisos_in_form_and_in_data(tmp_path, hiso_run, method):
    theirs, other = hiso_run
    given = {"method": method, "lr": 0, **DIGITS}
    out = tmp_path / "run"
    summary = train(given, out)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "summary.json"]
    assert json.loads((out / "summary.json").read_text()) == summary
    assert list(summary) == list(other)
    assert summary["machine"].keys() - {"flwr"} == other["machine"].keys()
    assert [list(line) for line in lines_of(out)] == [list(line) for line in lines_of(theirs)]

    # Nothing moved, so every loss is that of the base model on the round's batches.
    for mine, its in zip(lines_of(out, "round"), lines_of(theirs, "round"), strict=True):
        assert (mine["round"], mine["clients"]) == (its["round"], its["clients"])
        assert mine["loss"] == pytest.approx(its["loss"], rel=1e-5)
        passes = (11 + 1) if method == "fedzo" else 3
        assert mine["passes"] == 2 * 2 * passes
        assert mine["bytes_up"] == mine["bytes_down"] == 2 * 4 * summary["trainable_weights"]
    pairs = zip(lines_of(out, "evaluation"), lines_of(theirs, "evaluation"), strict=True)
    for mine, its in pairs:
        assert mine == its
    same = ("metrics_before", "metrics_after", "data", "trainable_weights", "digest", "rounds")
    assert {key: summary[key] for key in same} == {key: other[key] for key in same}
    weights = 8 * 9 + 8 + 16 * 8 * 9 + 16 + 16 * 4 * 10 + 10
    assert summary["trainable_weights"] == weights
    assert summary["bytes_up"] == summary["bytes_down"] == 6 * 2 * 4 * weights
    assert summary["bytes_up"] == summary["fedavg_bytes_up"]
    assert summary["paper_bytes"] == 6 * 2 * 4 * weights
    assert summary["seconds_per_round"] >= summary["forward_seconds_per_round"] > 0


@pytest.mark.parametrize("method", BASELINES)
def test_every_method_learns(tmp_path, method):
    given = {"method": method, "task": "digits", "model": "cnn", "eval_every": 0, **GOOD[method]}
    summary = train(given | {"rounds": 60}, tmp_path / "run")
    assert summary["loss_after"] < summary["loss_before"] - (0.05 if method == "fedzo" else 0.5)
    assert summary["accuracy_after"] > summary["accuracy_before"]


@pytest.mark.parametrize("method", ["fedavg", "fedadam", "fedzo"])
def test_a_language_model_learns(tmp_path, base, method):
    given = {key: value for key, value in base.items() if method == "fedzo" or key != "directions"}
    given |= {"method": method, "lr": 1e-3 if method == "fedzo" else 0.1, "rounds": 12}
    out = tmp_path / "run"
    summary = train(given, out)
    assert summary["trainable_weights"] == 44_192
    assert summary["bytes_up"] == 12 * 2 * 4 * 44_192
    assert summary["loss_after"] < summary["loss_before"]
    assert train(given, tmp_path / "again")["digest"] == summary["digest"]


class Stop(Silent):
    """Interrupts a run, as a person would, when a round has been done."""

    def __init__(self, at: int) -> None:
        self.at, self.seen, self.begun = at, [], []

    def started(self, position: int, rounds: int) -> None:
        self.begun.append(position)

    def round(self, row) -> None:
        self.seen.append(row.round)
        if row.round == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", ["fedadam", "fedyogi", "fedadagrad", "fedzo"])
def test_a_run_that_was_stopped_goes_on_from_its_last_evaluation(tmp_path, method):
    given = {"method": method, **DIGITS, "rounds": 9}
    whole = train(given, tmp_path / "whole")
    out = tmp_path / "run"
    for at, checkpoint in ((0, False), (5, True), (7, True)):
        with pytest.raises(KeyboardInterrupt):
            train(given, out, observer=Stop(at))
        assert (out / "checkpoint.safetensors").is_file() == checkpoint
        assert not (out / "summary.json").exists()
    with pytest.raises(RunConflict, match=r"lr: .* there, 0\.5 asked for"):
        train(given | {"lr": 0.5}, out)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "round", "rou')
    last = Stop(-1)
    summary = train(given, out, observer=last)
    assert last.begun == [6]
    assert last.seen == list(range(9))
    assert summary["digest"] == whole["digest"]
    assert summary["metrics_after"] == whole["metrics_after"]
    assert without_times(lines_of(out)) == without_times(lines_of(tmp_path / "whole"))
    assert not (out / "checkpoint.safetensors").exists()


def test_what_is_finished_is_not_trained_again(tmp_path):
    out = tmp_path / "run"
    summary = train({"method": "fedavg", **DIGITS}, out)
    before = (out / "summary.json").read_bytes()
    assert train({"method": "fedavg", **DIGITS}, out, observer=Stop(0)) == summary
    assert train(summary["settings"], out, observer=Stop(0)) == summary
    with pytest.raises(RunConflict, match="seed: 0 there, 1 asked for"):
        train({"method": "fedavg", **DIGITS, "seed": 1}, out)
    with pytest.raises(RunConflict, match="method: 'fedavg' there, 'fedadam' asked for"):
        train({"method": "fedadam", **DIGITS}, out)
    assert (out / "summary.json").read_bytes() == before


def test_a_run_of_hiso_is_left_alone(hiso_run):
    out, _ = hiso_run
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunConflict, match="with a ledger"):
        train({"method": "fedavg", **DIGITS}, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_damaged_checkpoint_is_told_of(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train({"method": "fedavg", **DIGITS}, out, observer=Stop(3))
    (out / "checkpoint.safetensors").write_bytes(b"broken")
    with pytest.raises(ProtocolError, match="delete it, and the run starts again"):
        train({"method": "fedavg", **DIGITS}, out)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"method": "fedadam", "server_lr": 100.0}, "round 1: .*more than 9 times the median"),
        ({"method": "fedavg", "lr": 1e30, "local_steps": 1}, "the loss is (nan|inf) for client"),
    ],
)
def test_a_loss_that_explodes_ends_the_run_and_leaves_its_log(tmp_path, given, problem):
    out = tmp_path / "run"
    with pytest.raises(Diverged, match=problem + ".* smaller lr"):
        train(DIGITS | given, out)
    assert not (out / "summary.json").exists()
    assert [line["round"] for line in lines_of(out, "round")] == [0]


def test_wrong_settings_touch_nothing(tmp_path):
    with pytest.raises(SettingsError):
        train({"method": "fedavg", **DIGITS, "mu": 1e-3}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
