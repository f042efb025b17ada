"""Rounds on digits, against torch's own optimiser and against hiso's own method."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso import simulate
from hiso.core.keys import choose
from hiso.core.noise.reference import direction
from hiso.errors import NonFiniteLoss
from hiso.lab.baselines.baseline_run import train
from hiso.lab.baselines.federation import Federation
from hiso.workloads.vision.models import make_network

from .conftest import DIGITS

pytestmark = pytest.mark.usefixtures("one_thread")
LR = 0.1


def weights_of(federation: Federation) -> list[np.ndarray]:
    flat = federation.replica.weights
    return [
        flat[entry.offset : entry.offset + entry.numel].double().numpy().reshape(entry.shape).copy()
        for entry in federation.replica.layout
    ]


def network(values: list[np.ndarray] | None = None, *, seed: int = 0) -> nn.Module:
    module = make_network("cnn", (1, 8, 8), 10, seed)
    for parameter, value in zip(module.parameters(), values or (), strict=False):
        parameter.data = torch.from_numpy(value).float()
    return module


def loss_of(module: nn.Module, batch) -> torch.Tensor:
    like = next(module.parameters())
    pixels = torch.stack([image.pixels for image in batch.examples]).to(like.dtype)
    labels = torch.tensor([image.label for image in batch.examples])
    return nn.functional.cross_entropy(module(pixels), labels)


def by_torch(federation: Federation, values, client: int, round: int, steps: int):
    """Weights after plain SGD on the client's batches, and the first batch's loss."""
    module, losses = network(values), []
    optimizer = torch.optim.SGD(module.parameters(), lr=LR)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(module, federation.workload.shards[client].batch(round, step))
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    return [p.detach().double().numpy() for p in module.parameters()], losses[0]


def assert_near(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


def distance(one, other) -> float:
    return float(np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(one, other, strict=True))))


def test_fedavg_with_one_client_is_sgd(federation):
    run = federation(method="fedavg", lr=LR, clients=1, sample=1, local_steps=3)
    for round in range(3):
        expected, first = by_torch(run, weights_of(run), 0, round, 3)
        row = run.round()
        assert row.loss == pytest.approx(first, rel=1e-6)
        assert_near(weights_of(run), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weighting", ["plain", "examples"])
def test_fedavg_is_the_mean_of_independent_trainings(federation, weighting):
    """Not one client after the other, which is what shared tensors make of it."""
    run = federation(
        method="fedavg", lr=LR, local_steps=2, weighting=weighting,
        partition="dirichlet", alpha=0.1, sample=3,
    )  # fmt: skip
    start = weights_of(run)
    clients = choose(0, "sample", 0, 0, size=6, count=3)
    sizes = [run.workload.shards[i].examples for i in clients]
    assert len(set(sizes)) > 1
    parts = np.array([1.0] * 3 if weighting == "plain" else sizes) / (
        3 if weighting == "plain" else sum(sizes)
    )
    trained = [by_torch(run, start, i, 0, 2) for i in clients]
    expected = [
        sum(p * w for p, w in zip(parts, each, strict=True))
        for each in zip(*(weights for weights, _ in trained), strict=True)
    ]
    row = run.round()
    assert row.clients == clients
    assert row.loss == pytest.approx(parts @ [loss for _, loss in trained], rel=1e-6)
    assert_near(weights_of(run), expected, rtol=1e-5, atol=1e-7)
    chained = start
    for client in clients:
        chained, _ = by_torch(run, chained, client, 0, 2)
    assert distance(chained, expected) > 1e4 * distance(weights_of(run), expected)


def test_moments_are_those_of_what_clients_learned(federation):
    """Not 0, which is what they are if clients train on the server's own tensors."""
    run = federation(method="fedadam", lr=LR, sample=2)
    start = weights_of(run)
    clients = choose(0, "sample", 0, 0, size=6, count=2)
    one, other = (by_torch(run, start, i, 0, 1)[0] for i in clients)
    run.round()
    names = [entry.name for entry in run.replica.layout]
    delta = [(a + b) / 2 - w for a, b, w in zip(one, other, start, strict=True)]
    state = run.server.state
    assert_near([state[f"m_t/{n}"] for n in names], [0.1 * d for d in delta], rtol=1e-3, atol=1e-8)
    assert_near(
        [state[f"v_t/{n}"] for n in names], [0.01 * d * d for d in delta], rtol=2e-3, atol=1e-10
    )
    correction = (1 - 0.99**2) ** 0.5 / (1 - 0.9**2)
    expected = [
        w + 0.1 * correction * 0.1 * d / (np.sqrt(0.01 * d * d) + 1e-3)
        for w, d in zip(start, delta, strict=True)
    ]
    assert_near(weights_of(run), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "given", [{}, {"scheme": "central", "noise": "gaussian", "directions": 3, "seed": 5}]
)
def test_fedzo_of_one_client_and_step_is_zo_sgd(tmp_path, given):
    """Bit for bit: the same directions, the same scalars, the same fold."""
    given = DIGITS | {"lr": 0.01, "sample": 1, "rounds": 6, **given}
    vectors = train(given | {"method": "fedzo"}, tmp_path / "vectors")
    scalars = simulate(out=tmp_path / "scalars", method="zo_sgd", per_client=True, **given)
    assert vectors["digest"] == scalars["digest"]
    assert vectors["metrics_after"] == scalars["metrics_after"]
    assert vectors["metrics_before"] != vectors["metrics_after"]


def test_fedzo_walks_along_each_clients_own_directions_and_averages(federation):
    """Two local steps of two clients, with derivatives by autograd in float64."""
    directions, lr, mu = 2, 0.02, 1e-3
    run = federation(method="fedzo", lr=lr, local_steps=2, directions=directions, mu=mu)
    start = weights_of(run)
    clients = choose(0, "sample", 0, 0, size=6, count=2)
    assert run.round().clients == clients
    ends = []
    for client in clients:
        module = network(start).double()
        for step in range(2):
            batch = run.workload.shards[client].batch(0, step)
            u = [unit(run, step, client, p) for p in range(directions)]
            base = float(loss_of(module, batch).detach())
            g = [(shifted_loss(module, each, mu, batch) - base) / mu for each in u]
            for p, parameter in enumerate(module.parameters()):
                move = sum(s * each[p] for s, each in zip(g, u, strict=True)) / directions
                parameter.data -= lr * torch.from_numpy(move)
        ends.append([p.detach().numpy() for p in module.parameters()])
    expected = [(a + b) / 2 for a, b in zip(*ends, strict=True)]
    moved = distance(expected, start)
    assert moved > 1e-2
    assert distance(weights_of(run), expected) < 2e-3 * moved


def unit(run: Federation, step: int, client: int, p: int) -> list[np.ndarray]:
    """The direction by the reference noise, by parameter."""
    layout = run.replica.layout
    flat = direction(
        "binomial", 0, round=0, step=step, stream=client + 1, direction=p, tiles=range(layout.tiles)
    ).reshape(-1)
    return [flat[e.offset : e.offset + e.numel].astype(np.float64).reshape(e.shape) for e in layout]


def shifted_loss(module: nn.Module, u: list[np.ndarray], mu: float, batch) -> float:
    kept = [p.detach().clone() for p in module.parameters()]
    for parameter, each in zip(module.parameters(), u, strict=True):
        parameter.data = parameter.data + mu * torch.from_numpy(each)
    loss = float(loss_of(module, batch).detach())
    for parameter, old in zip(module.parameters(), kept, strict=True):
        parameter.data = old
    return loss


@pytest.mark.parametrize("method", ["fedavg", "fedzo"])
def test_a_loss_that_is_not_finite_leaves_the_weights(federation, method):
    run = federation(method=method, lr=1e30)
    run.round()
    before = weights_of(run)
    with pytest.raises(NonFiniteLoss):
        run.round()
    assert run.replica.position == 1
    assert_near(weights_of(run), before, rtol=0)
