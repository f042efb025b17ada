"""`keep` and `patience`: the model that did best on the tuning split, and when to stop."""

from __future__ import annotations

import pytest
import torch

from hiso import evaluate_run, open_run, simulate
from hiso.errors import SettingsError
from hiso.export.adapter import read_run
from hiso.ring.ledger.ledger import Ledger
from hiso.run.results import Evaluation, kept_position, lowest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(small_run) -> dict:
    return {**small_run, "lr": 0.01, "rounds": 4, "eval_every": 1, "divergence_factor": 0}


WORSE = {"lr": 0.6, "rounds": 8}
"""Steps that are too long: what has fallen rises."""


def tuning(out) -> dict[int, float]:
    with Ledger.read(out / "ledger.sqlite") as ledger:
        return {e.position: e.metrics["loss"] for e in ledger.evaluations() if e.split == "dev"}


def test_the_lowest_is_the_first_of_equals_on_the_tuning_split():
    losses = {0: 3.0, 4: 1.0, 6: 2.0, 8: 1.0}
    told = [Evaluation(at, "dev", {"loss": loss}) for at, loss in losses.items()]
    assert lowest([*reversed(told), Evaluation(5, "test", {"loss": 0.0})]) == 4
    assert lowest([Evaluation(5, "test", {"loss": 0.0})]) is None


def test_the_best_is_kept(tmp_path, base):
    out = tmp_path / "run"
    simulate(out=out, **base | {"keep": "best"})
    told = simulate(out=out, change=WORSE)
    losses = tuning(out)
    best = min(losses, key=lambda at: (losses[at], at))
    assert 0 < best < 8
    assert told["kept"] == best
    assert told["rounds"] == 8
    late = evaluate_run(out)
    assert late["position"] == best
    assert late["loss"] == told["loss_after"]
    assert late == evaluate_run(out, position=best)
    assert read_run(out).position == best
    run = open_run(out)
    pairs = zip(run.model.parameters(), run.at(best).parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    last = simulate(out=out, change={"keep": "last"})
    assert "kept" not in last
    assert last["loss_after"] == evaluate_run(out, position=8)["loss"] != told["loss_after"]
    assert last["digest"] == told["digest"]


def test_patience_ends_a_run_that_no_longer_gains(tmp_path, base):
    out = tmp_path / "run"
    simulate(out=tmp_path / "whole", **base)
    whole = simulate(out=tmp_path / "whole", change=WORSE)
    losses = tuning(tmp_path / "whole")
    stalled = [at for at in losses if at - min(range(at + 1), key=lambda i: (losses[i], i)) >= 2]
    end = next(at for at in stalled if at >= 4)
    assert end < 8
    simulate(out=out, **base)
    told = simulate(out=out, change=WORSE | {"patience": 2})
    assert told["rounds"] == end
    assert tuning(out) == {at: loss for at, loss in losses.items() if at <= end}
    again = simulate(out=out, change={})
    assert (again["rounds"], again["chain"]) == (end, told["chain"])
    onward = simulate(out=out, change={"patience": 0})
    assert (onward["digest"], onward["chain"]) == (whole["digest"], whole["chain"])


def test_runs_of_before_keep_their_last_model(tmp_path, base):
    simulate(out=tmp_path / "run", **base)
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert kept_position(ledger) == 4


@pytest.mark.parametrize("more", [{"keep": "best"}, {"patience": 1}])
def test_there_must_be_evaluations(tmp_path, base, more):
    with pytest.raises(SettingsError):
        simulate(out=tmp_path / "run", **base | more | {"eval_every": 0})
