"""What a method's author may get wrong: refused alike by every backend, or computed alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from hiso.core.kernels.emit import NUMBA, Printer, trace
from hiso.core.method.base import Method
from hiso.core.method.ops import select, sqrt, var
from hiso.core.method.registry import HiSo
from hiso.errors import SettingsError

from .conftest import make_record, make_replica


def method_with(**pieces: Any) -> Method:
    kind = type("Mine", (Method,), {"name": "mine", "__annotations__": {}, **pieces})
    return dataclass(frozen=True, kw_only=True)(kind)()


def digests(method: Method) -> set[int]:
    found = set()
    for backend in ("numba", "reference"):
        replica = make_replica(method, backend)
        replica.replay([make_record(np.random.default_rng(0), method, r) for r in range(2)])
        found.add(replica.digest())
    return found


@pytest.mark.parametrize(
    "step",
    [
        lambda self, w, state, dx, hyper: (w - dx if hyper["lr"] == 0.0 else w, {}),
        lambda self, w, state, dx, hyper: (w - dx if hyper["lr"] >= 0.0 else w, {}),
        lambda self, w, state, dx, hyper: (w - (dx > 0.1) * 0.3 * dx, {}),
        lambda self, w, state, dx, hyper: (w - np.sqrt(2.0) * dx, {}),
        lambda self, w, state, dx, hyper: (w - np.float64(0.1) * dx, {}),
        lambda self, w, state, dx, hyper: (select(dx > 0.0, w, float("inf")), {}),
        lambda self, w, state, dx, hyper: (w - max(dx, 0.0), {}),
    ],
    ids=["equals", "at-least", "condition-as-number", "np.sqrt", "float64", "inf", "max"],
)
def test_pieces_that_backends_would_read_differently_are_refused(step):
    with pytest.raises(TypeError):
        make_replica(method_with(step=step))


@pytest.mark.parametrize(
    "step",
    [
        lambda self, w, state, dx, hyper: (w * 0.0 + select(w * -0.0 > w, w, -0.0) * w, {}),
        lambda self, w, state, dx, hyper: (w - sqrt(2.0) * hyper["lr"] * dx, {}),
        lambda self, w, state, dx, hyper: (select(-0.0 * w < 0.0, w, -0.0 * w) / 3, {}),
    ],
    ids=["signed-zeros", "sqrt-of-a-literal", "literal-first"],
)
def test_unusual_pieces_give_the_same_bits(step):
    assert len(digests(method_with(step=step))) == 1


def test_states_may_start_at_integers_and_become_constants():
    method = method_with(
        step_state={"m": 0}, step=lambda self, w, state, dx, hyper: (w - state["m"], {"m": 1.0})
    )
    assert make_replica(method).state["m"].dtype == torch.float32
    assert len(digests(method)) == 1


@pytest.mark.parametrize(
    "states",
    [
        {"step_state": {"w": 0.0}},
        {"round_state": {"weights": 0.0}},
        {"step_state": {"m": 0.0}, "round_state": {"m": 0.0}},
    ],
)
def test_state_names_that_are_taken_are_refused(states):
    with pytest.raises(TypeError, match="is taken"):
        trace(method_with(**states))


def test_hyper_parameters_must_be_numbers():
    with pytest.raises(SettingsError, match="lr = 'fast' must be a number"):
        HiSo(lr="fast")
    with pytest.raises(SettingsError, match="nu = True must be a number"):
        HiSo(nu=True)


def test_deep_graphs_are_printed_once_per_node():
    x = var("w")
    for _ in range(64):
        x = x * x
    printer = Printer(NUMBA)
    printer.name(x)
    assert len(printer.lines) == 64


def test_a_denominator_may_read_hyper_parameters():
    @dataclass(frozen=True, kw_only=True)
    class Scaled(Method):
        name: ClassVar[str] = "scaled"
        scale: float = 2.0

        def denom(self, state, hyper):
            return hyper["scale"]

    from hiso.core.noise.point import Point

    for backend in ("numba", "reference"):
        replica = make_replica(Scaled(), backend)
        replica.write(Point(3, 0, 0, 1, 1), mu=0.5, changes={"scale": 4.0})
        wide = replica.module.body.detach() - replica.weights[4096 : 4096 + 37 * 37].view(37, 37)
        replica.write(Point(3, 0, 0, 1, 1), mu=0.5)
        near = replica.module.body.detach() - replica.weights[4096 : 4096 + 37 * 37].view(37, 37)
        assert torch.allclose(near, 2 * wide, atol=1e-6)
        assert wide.abs().max() > 0.1
        with pytest.raises(ValueError, match="no hyper-parameter scal"):
            replica.write(Point(0, 0, 0, 1, 1), changes={"scal": 4.0})
