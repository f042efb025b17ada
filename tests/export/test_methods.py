"""Every method: its runs leave as adapters, at any position, and come back with the same digest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

import hiso
from hiso import HiSo, Method, auto_lr, export_adapter, load, simulate
from hiso.core.method.ops import sign
from hiso.core.method.registry import METHODS
from hiso.export.adapter import read_adapter
from hiso.export.out import apply
from hiso.workloads.text.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDS = 4
BUILT_IN = {name: kind for name, kind in METHODS.items() if kind.__module__.startswith("hiso.")}
SOLVING = {name for name, kind in BUILT_IN.items() if kind.needs == "scores"}
DIAGONAL = {name for name, kind in BUILT_IN.items() if kind.round_state}


@dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """One's own, with state of a step and of a round, and with state that derives from the log."""

    name = "counting"
    step_state: ClassVar[dict[str, float]] = {"m": 0.0}
    round_state: ClassVar[dict[str, float]] = {"h": 1.0}
    derived: ClassVar[dict[str, float]] = {"rounds": 0.0}

    beta: float = 0.9

    def denom(self, state, hyper):
        return state["h"]

    def step(self, w, state, dx, hyper):
        m = hyper["beta"] * state["m"] + dx
        return w - hyper["lr"] * sign(m), {"m": m}

    def learn(self, state, dx, s2, hyper):
        return {"h": state["h"] + dx * dx}

    def remember(self, derived, record):
        return {**derived, "rounds": derived["rounds"] + 1}

    def follow(self, hyper, derived, directions, examples):
        return {"beta": derived["rounds"] / 10}


def run(base: dict[str, Any], out, settings: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in base.items() if key != "lr"} | {"rounds": ROUNDS}
    return simulate(out=out, **given | settings)


def check_every_way_out(tmp_path, model, kind: type[Method]) -> None:
    """At every position the adapter gives the digest of a replay of the ledger itself."""
    ledger = tmp_path / "run" / "ledger.sqlite"
    for position in range(ROUNDS + 1):
        base = load_model(str(model)).model
        expected = hiso.replay(ledger, base, position=position, method=kind).digest()
        out = tmp_path / f"adapter-{position}"
        done = export_adapter(tmp_path / "run", out, position=position, method=kind)
        tuned = load(model, out, method=kind)
        assert (f"{tuned.digest:016x}", tuned.digest) == (done["digest"], expected)
    applied = apply(out, tmp_path / "model", base=model, method=kind)
    assert applied["digest"] == done["digest"]


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize(
    ("name", "lr"),
    [(name, 0.005) for name in BUILT_IN] + [(n, "auto") for n in BUILT_IN if n not in SOLVING],
)
def test_every_method(tmp_path, base, tiny_model, name, lr, biases):
    kind = BUILT_IN[name]
    settings = {"method": name, "lr": lr, "local_steps": 2, "label_bias": biases}
    summary = run(base, tmp_path / "run", settings)
    check_every_way_out(tmp_path, tiny_model, kind)
    log = read_adapter(tmp_path / f"adapter-{ROUNDS}")
    assert f"{log.after:016x}" == summary["digest"]
    assert all(set(record.facts) == set(log.identity.method.facts) for record in log.records)
    assert all((record.curvature is not None) == kind.measures_curvature for record in log.records)
    assert all(("x1" in record.facts) == biases for record in log.records)
    if lr == "auto":
        assert sum("lr" in record.changes for record in log.records) > 1


@pytest.mark.parametrize("name", [n for n in BUILT_IN if n not in SOLVING | DIAGONAL])
def test_a_mean_curvature_is_in_the_changes(tmp_path, base, tiny_model, name):
    run(base, tmp_path / "run", {"method": name, "lr": 0.005, "normalise": 0.05})
    check_every_way_out(tmp_path, tiny_model, BUILT_IN[name])
    log = read_adapter(tmp_path / f"adapter-{ROUNDS}")
    assert [set(record.changes) for record in log.records[1:]] == [{"lr"}] * (ROUNDS - 1)


@pytest.mark.parametrize("wrap", [lambda method: method, auto_lr], ids=["plain", "auto"])
def test_a_method_of_ones_own(tmp_path, base, tiny_model, wrap):
    summary = run(base, tmp_path / "run", {"method": wrap(Counting(lr=0.001)), "local_steps": 2})
    METHODS.pop("counting")
    check_every_way_out(tmp_path, tiny_model, Counting)
    log = read_adapter(tmp_path / f"adapter-{ROUNDS}", method=Counting)
    assert f"{log.after:016x}" == summary["digest"]


def test_a_task_of_ones_own(tmp_path, base, tiny_model):
    stars = hiso.Task(name="stars", template="{text} It was", labels=(" bad", " good"))
    run(base, tmp_path / "run", {"method": HiSo(lr=0.01), "task": stars})
    check_every_way_out(tmp_path, tiny_model, HiSo)
