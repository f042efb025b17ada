"""What the server makes of clients' weights, against the equations in float64."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from hiso.lab.baselines.baseline_settings import BASELINES
from hiso.lab.baselines.vector_server import Server, Update, pack

ROUNDS = 4
SHAPES = {"a.weight": (3, 5), "a.bias": (3,), "scale": ()}


def draw(seed: int) -> dict[str, torch.Tensor]:
    """Weights after a step of a size that differs by orders of magnitude."""
    noise = np.random.Generator(np.random.Philox(seed))
    return {
        name: torch.tensor(noise.normal(size=shape) * 10 ** noise.uniform(-4, 0)).float()
        for name, shape in SHAPES.items()
    }


def reference(method: str, hyper: dict, start: dict, steps: list[list[tuple[int, dict]]]) -> dict:
    """Reddi et al., Algorithm 2, with v₀ = 0 and Flower's correction, in float64."""
    w = {name: value.double().numpy() for name, value in start.items()}
    m = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    v = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    b1, b2 = hyper.get("beta_1", 0.0), hyper.get("beta_2", 0.0)
    for t, clients in enumerate(steps, start=1):
        total = sum(n for n, _ in clients)
        eta = hyper.get("server_lr", 1.0)
        if method == "fedadam":
            eta *= (1 - b2 ** (t + 1)) ** 0.5 / (1 - b1 ** (t + 1))
        for name in w:
            delta = sum(n / total * moves[name].double().numpy() for n, moves in clients)
            if method in ("fedavg", "fedzo"):
                w[name] = w[name] + delta
                continue
            m[name] = b1 * m[name] + (1 - b1) * delta
            square = delta * delta
            v[name] = {
                "fedadagrad": v[name] + square,
                "fedadam": b2 * v[name] + (1 - b2) * square,
                "fedyogi": v[name] - (1 - b2) * square * np.sign(v[name] - square),
            }[method]
            w[name] = w[name] + eta * m[name] / (np.sqrt(v[name]) + hyper["tau"])
    return w


def run(method: str, hyper: dict, start: dict, steps: list, *, backwards: bool = False) -> dict:
    server, now = Server(method, hyper), {name: value.clone() for name, value in start.items()}
    for round, clients in enumerate(steps):
        updates = [
            Update(i, pack({name: now[name] + move[name] for name in now}), n, 0.0)
            for i, (n, move) in enumerate(clients)
        ]
        fresh = server.aggregate(round, now, updates[::-1] if backwards else updates)
        assert {value.dtype for value in fresh.values()} == {np.dtype(np.float32)}
        now = {name: torch.from_numpy(np.asarray(value)) for name, value in fresh.items()}
    return now


def rounds() -> list[list[tuple[int, dict]]]:
    return [[(n, draw(10 * t + n)) for n in (3, 1, 4)] for t in range(ROUNDS)]


@pytest.mark.parametrize("method", BASELINES)
def test_the_server_computes_the_equations(method):
    start, steps = draw(99), rounds()
    found, expected = (f(method, BASELINES[method], start, steps) for f in (run, reference))
    for name in SHAPES:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("method", BASELINES)
def test_the_order_of_clients_does_not_matter(method):
    start, steps = draw(99), rounds()
    one, other = (run(method, BASELINES[method], start, steps, backwards=b) for b in (False, True))
    for name in SHAPES:
        assert torch.equal(one[name], other[name])


@pytest.mark.parametrize("method", ["fedadam", "fedyogi", "fedadagrad"])
def test_state_is_all_that_a_server_remembers(method):
    hyper, now, steps = BASELINES[method], draw(99), rounds()
    updates = [[Update(0, pack(move), n, 0.0) for n, move in step[:1]] for step in steps]
    old, new = Server(method, hyper), Server(method, hyper)
    assert old.state == {}
    old.aggregate(0, now, updates[0])
    assert all(value.any() for value in old.state.values())
    new.restore(old.state)
    same = [server.aggregate(1, now, updates[1]) for server in (old, new)]
    for name in SHAPES:
        assert np.array_equal(same[0][name], same[1][name])


def test_nothing_is_shared_and_flower_is_silent():
    """Weights that change after they were sent, or that the caller gets back, are copies."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("flwr")
    level = log.level
    log.addHandler(handler)
    try:
        now, sent = draw(1), draw(2)
        update = Update(0, pack(sent), 1, 0.0)
        wanted = {name: value.clone() for name, value in sent.items()}
        for value in sent.values():
            value.zero_()
        server = Server("fedadam", BASELINES["fedadam"])
        fresh = server.aggregate(0, now, [update])
        averaged = Server("fedavg", {"lr": 1.0}).aggregate(0, now, [update])
        moments = {name: value.copy() for name, value in server.state.items()}
        for value in (*now.values(), *fresh.values()):
            value[...] = 7.0
        for name in SHAPES:
            assert np.array_equal(averaged[name], wanted[name].numpy())
            assert np.array_equal(server.state[f"m_t/{name}"], moments[f"m_t/{name}"])
    finally:
        log.removeHandler(handler)
    assert records == []
    assert log.level == level
