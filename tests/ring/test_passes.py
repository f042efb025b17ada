"""A client's passes: the walk over its local steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.kernels import pack
from hiso.core.measure.probe import Probe
from hiso.core.method.registry import HiSo, HiZoo, Momentum, ZoSgd
from hiso.core.noise.point import Point
from hiso.core.record import Record
from hiso.core.replica.replica import Replica
from hiso.ring.passes import measure

from ..identities import identity_of

BOTH = ["forward", "backward"]
METHODS = [ZoSgd(lr=0.1), HiSo(lr=0.1), Momentum(lr=0.1), HiZoo(lr=0.1)]


def new_replica(method):
    module = nn.Linear(5, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.1, -0.2, 0.3, 0.0, 1.0]]))
    return Replica(module, identity_of(method, seed=7), backend="reference")


def measured(
    method,
    *,
    steps: int,
    changes: dict[str, float] | None = None,
    scheme="forward",
    backward: bool = False,
):
    """A replica, its finished probe of 3 directions, and weights and batch of every loss."""
    replica, seen = new_replica(method), []
    stream = 4
    probe = Probe(
        client=3, round=0, steps=steps, directions=3, mu=1e-2, scheme=scheme,
        stream=stream, with_curvature=method.measures_curvature,
    )  # fmt: skip

    def losses(batches: list[int]) -> list[float]:
        (batch,) = batches
        weight = replica.module.weight.detach().clone().flatten()
        seen.append((batch, weight))
        return [float(((weight - 1 - batch) ** 2).sum())]

    def loss(batch: int) -> torch.Tensor:
        losses([batch])
        return ((replica.module.weight - 1 - batch) ** 2).sum()

    measure(replica, probe, lambda step: step, losses, changes or {}, loss if backward else None)
    return replica, probe, seen


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("changes", [{}, {"lr": 0.3}], ids=["", "changed"])
@pytest.mark.parametrize("probing", BOTH)
def test_a_local_step_is_measured_where_its_own_scalars_lead(method, changes, probing):
    """The walk is what folding the client's own record gives, curvature not being learnt."""
    if method.measures_curvature and probing == "backward":
        pytest.skip("no backward pass gives a curvature")
    _, probe, seen = measured(method, steps=2, changes=changes, backward=probing == "backward")
    per_step = len(seen) // 2
    assert [batch for batch, _ in seen] == [0] * per_step + [1] * per_step
    witness = new_replica(method)
    own = Record(
        0,
        np.zeros(3, np.uint16),
        np.full(3, 4, np.uint32),
        np.arange(3, dtype=np.uint16),
        (probe.scalars[0].astype(np.float64) / 3).astype(np.float32),
        np.zeros(3, np.float32) if method.measures_curvature else None,
        changes,
    )
    steps, _ = pack(witness.method, [own], witness.hyper)
    steps.feeds[:] = False
    witness._kernels.fold(witness.weights, witness.state, steps)
    witness.write()
    assert torch.equal(seen[per_step][1], witness.module.weight.detach().flatten())


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_replica_is_only_read(method, scheme):
    fresh = new_replica(method)
    replica, probe, _ = measured(method, steps=3, changes={"lr": 0.2}, scheme=scheme)
    assert probe.ask() is None
    assert replica.digest() == fresh.digest()
    assert (replica.position, replica.hyper) == (0, fresh.hyper)


def test_the_scalars_are_derivatives_of_the_loss():
    """Along u, of a quadratic, the central difference is exact but for rounding."""
    replica, probe, seen = measured(ZoSgd(), steps=1, scheme="central")
    w = replica.weights[:5]
    for p in range(3):
        u = (seen[2 * p][1] - w) / probe.mu
        assert probe.scalars[0, p] == pytest.approx(float(2 * (w - 1) @ u), rel=1e-3, abs=1e-3)
        assert torch.allclose(seen[2 * p + 1][1], w - probe.mu * u, atol=1e-6)


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("method", [ZoSgd(lr=0.1), HiSo(lr=0.1), Momentum(lr=0.1)])
def test_a_backward_pass_a_step_is_all_there_is(method, scheme):
    """Three local steps, three passes, each at the step's own point and batch; exact scalars."""
    fresh = new_replica(method)
    replica, probe, seen = measured(method, steps=3, scheme=scheme, backward=True)
    assert [batch for batch, _ in seen] == [0, 1, 2]
    assert probe.loss == pytest.approx(float(((seen[0][1] - 1) ** 2).sum()))
    for k, (batch, w) in enumerate(seen):
        for p in range(3):
            u = direction(k, p)
            assert probe.scalars[k, p] == pytest.approx(
                float((2 * (w - 1 - batch)).double() @ u), rel=1e-5
            )
    assert replica.digest() == fresh.digest()


def direction(step: int, number: int) -> torch.Tensor:
    """u of client 3's own stream in round 0, read off a perturbation: h is 1 there."""
    replica = new_replica(ZoSgd())
    with torch.no_grad():
        replica.weights.zero_()
        replica._watch.note_buffers()
    replica.write(Point(0, step, 4, number, 1), mu=1.0)
    return replica.module.weight.detach().flatten().double()
