"""Scalars against derivatives that are known, and giving a module back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.measure.calibrate import judge, scalars
from hiso.core.measure.outcome import Outcome
from hiso.core.method.registry import HiSo, ZoSgd
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import ProtocolError

from ..identities import identity_of
from .conftest import TinyNet, make_record


@torch.no_grad()
def test_scalars_of_a_quadratic():
    """f = Σ (a/2·w² + b·w): central differences are exact, forward ones off by mu/2·Σ a·z²."""
    size, mu = 300, 0.125
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, size, generator=generator, dtype=torch.float64)
    net = nn.Linear(size, 1, bias=False)
    replica = Replica(net, identity_of(ZoSgd(), seed=5))
    w = net.weight.detach().clone()[0].double()

    def outcome() -> Outcome:
        x = net.weight[0].double()
        return Outcome.of((a / 2 * x**2 + b * x).sum())

    found = scalars(replica, outcome, mu, 6)
    for p in range(6):
        replica.write(Point(0, 0, 0, p, 1), mu=1.0)
        z = net.weight[0].double() - w
        slope = float(((a * w + b) * z).sum())
        assert found["central"][p] == pytest.approx(slope, rel=1e-4, abs=1e-4)
        bent = slope + mu / 2 * float((a * z**2).sum())
        assert found["forward"][p] == pytest.approx(bent, rel=1e-4, abs=1e-4)


def test_judging_by_hand():
    truth = np.array([3.0, -4.0, 0.0, 5.0])
    exact = judge(1e-3, "forward", truth, truth)
    assert (exact.noise, exact.correlation) == (0.0, pytest.approx(1.0))
    shifted = judge(1e-3, "central", truth + np.array([1.0, 1, -1, -1]), truth)
    assert shifted.noise == pytest.approx(2 / np.sqrt(50))
    assert shifted.correlation == pytest.approx(np.corrcoef([4, -3, -1, 4], [3, -4, 0, 5])[0, 1])
    silent = judge(1e-3, "central", truth, np.zeros(4))
    assert (silent.noise, silent.correlation) == (np.inf, 0.0)


@pytest.mark.parametrize("memory", ["full", "lean"])
@torch.no_grad()
def test_a_released_module_has_its_weights_and_may_serve_again(memory):
    net, ids = TinyNet(), torch.arange(20)
    replica = Replica(net, identity_of(HiSo(lr=0.1), seed=4, dtype=torch.bfloat16), memory=memory)
    replica.replay([make_record(np.random.default_rng(0), replica.method, 0)])
    twin = Replica(TinyNet(), identity_of(HiSo(lr=0.1), seed=4))
    twin.replay([make_record(np.random.default_rng(0), twin.method, 0)])
    twin.write()

    assert replica.release() is net
    assert net.head is net.embed
    assert net.embed.dtype == torch.float32
    assert torch.equal(net(ids), twin.module(ids))
    with pytest.raises(ProtocolError, match="released"):
        replica.write()
    again = Replica(net, identity_of(HiSo(lr=0.1), seed=4), memory=memory)
    assert torch.equal(again.weights, twin.weights)
    assert torch.equal(again.module(ids), twin.module(ids))
