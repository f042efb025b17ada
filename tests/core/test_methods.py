"""The common suite: every method, on every backend, against a float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from hiso.core.method.base import Method
from hiso.core.method.ops import absolute, maximum, select, sign, sqrt, var
from hiso.core.method.registry import METHODS, HiSo, HiZoo, Momentum, SubspaceNewton, ZoSgd
from hiso.core.noise.reference import direction
from hiso.core.replica.replica import Replica
from hiso.errors import ProtocolError, SettingsError

from ..identities import identity_of
from .conftest import make_record, make_replica

LR = 0.01
CASES = [
    ZoSgd(lr=LR),
    HiSo(lr=LR, nu=0.1, floor=0.3),
    HiSo(lr=LR, nu=0.1, floor=0.0, feed="last"),
    HiSo(lr=LR, nu=0.1, feed="all"),
    Momentum(lr=LR, beta=0.8),
    HiZoo(lr=LR, nu=0.05, feed="all"),
    SubspaceNewton(lr=LR),
]
IDS = [f"{m.name}-{m.feed}" for m in CASES]
CHANGES = {4: {"lr": 0.02}, 7: {"lr": 0.005}}


def history(method: Method, directions: int, steps: int, rounds: int = 9) -> list:
    rng = np.random.default_rng(5)
    return [
        make_record(
            rng,
            method,
            r,
            steps=steps,
            directions=directions,
            streams=(0,) if r % 3 else (2, 5),
            changes=CHANGES.get(r),
        )
        for r in range(rounds)
    ]


def oracle(method: Method, replica: Replica, records: list, seed: int) -> dict[str, np.ndarray]:
    """The methods' equations in float64, written apart from `hiso.core.method.registry`."""
    x = {"weights": replica.weights.double().numpy()}
    x |= {name: buffer.double().numpy() for name, buffer in replica.state.items()}
    hyper = dict(method.hyper)
    for record in records:
        hyper |= record.changes
        h0 = x["h"].copy() if "h" in x else 1.0
        for k in range(record.steps):
            s1 = s2 = 0.0
            for n in np.flatnonzero(record.step == k):
                u = direction(
                    "binomial",
                    seed,
                    round=record.round,
                    step=k,
                    stream=int(record.stream[n]),
                    direction=int(record.direction[n]),
                    tiles=range(replica.layout.tiles),
                ).astype(np.float64)
                s1 = s1 + float(record.coefficient[n]) * u
                if record.curvature is not None:
                    s2 = s2 + float(record.curvature[n]) * u**2
            dx = s1 / np.sqrt(h0)
            if method.name == "momentum":
                x["m"] = hyper["beta"] * x["m"] + dx
                x["weights"] = x["weights"] - hyper["lr"] * x["m"]
                continue
            x["weights"] = x["weights"] - hyper["lr"] * dx
            fed = {"first": k == 0, "last": k == record.steps - 1, "all": True}[method.feed]
            if not method.round_state or not fed:
                continue
            nu, h = hyper["nu"], x["h"]
            new = dx**2 + hyper["eps"] if method.name == "hiso" else np.abs(0.5 * s2 * h)
            x["h"] = np.maximum(hyper["floor"], (1 - nu) * h + nu * new)
    return x


def inside(replica: Replica) -> np.ndarray:
    mask = np.zeros(replica.weights.numel(), bool)
    for entry in replica.layout:
        mask[entry.offset : entry.offset + entry.numel] = True
    return mask


@pytest.mark.parametrize("directions", [1, 5])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", CASES, ids=IDS)
def test_methods(method, steps, directions):
    records = history(method, directions, steps)
    live = make_replica(method, "numba")
    start = {name: buffer.clone() for name, buffer in live.state.items()}
    expected = oracle(method, live, records, 2**63 + 12345)

    digests = [live.digest()]
    for record in records:
        live.replay([record])
        digests.append(live.digest())
    assert len(set(digests)) == len(digests)
    assert live.position == len(records)

    late = make_replica(method, "numba")
    late.replay(records[:2])
    late.replay(records[2:])
    plain = make_replica(method, "reference")
    plain.replay(records)
    for other in (late, plain):
        assert torch.equal(other.weights, live.weights)
        assert all(torch.equal(other.state[name], live.state[name]) for name in live.state)
        assert (other.digest(), other.chain, other.hyper) == (live.digest(), live.chain, live.hyper)

    valid = inside(live)
    for name, buffer in {"weights": live.weights, **live.state}.items():
        ours = buffer.numpy()
        assert np.allclose(ours[valid], expected[name][valid], rtol=2e-4, atol=2e-6), name
        untouched = np.zeros_like(ours) if name == "weights" else start[name].numpy()
        assert np.array_equal(ours[~valid], untouched[~valid])


@pytest.mark.parametrize("noise", ["binomial", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [ZoSgd(), HiSo(), HiZoo()], ids=lambda m: m.name)
def test_perturbation_is_the_reference_bits(method, dtype, noise):
    from hiso.core.noise.point import Point

    copies = []
    for backend in ("numba", "reference"):
        replica = make_replica(method, backend, dtype=dtype, noise=noise)
        replica.replay(history(method, 2, 1, rounds=3))
        replica.write(Point(9, 1, 3, 2, -1), mu=1e-2)
        copies.append(replica.module.embed.detach().clone())
    assert copies[0].dtype == dtype
    assert torch.equal(*copies)
    assert not torch.equal(copies[0], replica.weights[: 61 * 37].view(61, 37).to(dtype))


@pytest.mark.parametrize("steps", [1, 3])
def test_hiso_with_unit_curvature_is_decomfl(steps):
    """H ≡ 1 (nu = 0) gives DeComFL's bits; with nu > 0 the second round differs."""
    plain, unit, learned = (
        make_replica(m) for m in (ZoSgd(lr=LR), HiSo(lr=LR, nu=0.0), HiSo(lr=LR, nu=0.1))
    )
    records = history(plain.method, 5, steps)
    for replica in (plain, unit, learned):
        replica.replay(records)
    assert torch.equal(plain.weights, unit.weights)
    assert torch.equal(unit.state["h"], torch.ones_like(unit.state["h"]))
    assert not torch.equal(plain.weights, learned.weights)


def test_curvature_is_learned_once_a_round_from_the_round_s_start():
    """P directions are one dx, not P folds: after one round h is (1−ν) + ν(dx² + ε), exactly."""
    method = HiSo(lr=LR, nu=0.05, eps=1e-8, floor=0.0)
    replica = make_replica(method)
    before = replica.weights.clone()
    replica.replay([make_record(np.random.default_rng(0), method, 0, directions=5)])
    dx = (before - replica.weights).double() / LR
    expected = 0.95 + 0.05 * (dx**2 + 1e-8)
    assert torch.allclose(
        replica.state["h"].double(), torch.where(dx == 0, replica.state["h"], expected), rtol=1e-4
    )


def test_floor_bounds_the_perturbation():
    """With tiny scalars for 300 rounds, h stays at the floor; without a floor it decays to eps."""
    rng = np.random.default_rng(1)
    tame, wild = (make_replica(HiSo(floor=f)) for f in (0.25, 0.0))
    records = [make_record(rng, tame.method, r, scale=1e-6) for r in range(300)]
    tame.replay(records)
    wild.replay(records)
    valid = inside(tame)
    assert tame.state["h"].numpy()[valid].min() == 0.25
    assert 1 / np.sqrt(wild.state["h"].numpy()[valid].max()) > 64


def test_sign_noise_would_teach_nothing():
    """At P = 1, dx² varies between weights because u² does."""
    replica = make_replica(HiSo(nu=0.5, floor=0.0))
    replica.replay([make_record(np.random.default_rng(2), replica.method, 0, directions=1)])
    assert replica.state["h"].numpy()[inside(replica)].std() > 1e-3


GOLDEN = [
    (HiSo(lr=0.01, nu=0.05, eps=1e-8, floor=0.25, feed="all"), "binomial", 0x30E7E965E16578D7),
    (HiSo(lr=0.01, nu=0.05, eps=1e-8, floor=0.25, feed="all"), "gaussian", 0x9FE94CCBC10F5E8B),
    (ZoSgd(lr=0.01), "binomial", 0x750CDA797099D6CD),
    (Momentum(lr=0.01, beta=0.9), "binomial", 0x895C4ACEDB1E2F9A),
    (HiZoo(lr=0.01, nu=1e-4, floor=0.25, feed="all"), "binomial", 0x04F0A3B464E3CA7E),
]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(("method", "noise", "digest"), GOLDEN)
def test_arithmetic_is_pinned_at_any_number_of_threads(method, noise, digest, threads):
    """A change here breaks every existing run: bump the format's version and these together."""
    module = torch.nn.Linear(500, 700)
    with torch.no_grad():
        module.weight.copy_(torch.arange(350_000).view(700, 500) / 2**20)
        module.bias.fill_(-0.5)
    records = [
        make_record(FixedNormals(), method, r, steps=2, streams=(0,) if r else (1, 3))
        for r in range(3)
    ]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        replica = Replica(module, identity_of(method, seed=3, noise=noise))
        replica.replay(records)
        assert replica.digest() == digest
    finally:
        torch.set_num_threads(before)


class FixedNormals:
    """Stands in for a NumPy generator, whose numbers may change between versions."""

    def standard_normal(self, count: int) -> np.ndarray:
        return (np.arange(count) * 37 % 101 - 50) / 50


@dataclass(frozen=True, kw_only=True)
class Lion(Method):
    """A method of our own, as docs/methods.md writes it: the sign of an interpolated momentum."""

    name: ClassVar[str] = "lion"
    step_state: ClassVar[dict[str, float]] = {"m": 0.0}

    beta: float = 0.9
    decay: float = 0.0

    def step(self, w, state, dx, hyper):
        m = hyper["beta"] * state["m"] + (1.0 - hyper["beta"]) * dx
        return w - hyper["lr"] * (sign(m) + hyper["decay"] * w), {"m": m}


def test_a_fifth_method_in_twenty_lines():
    records = history(Lion(), 5, 2)
    digests = set()
    for backend in ("numba", "reference"):
        replica = make_replica(Lion(lr=1e-3, decay=0.1), backend)
        replica.replay(records)
        digests.add(replica.digest())
    assert len(digests) == 1


def test_elementwise_operations_agree_with_their_graphs():
    """Every operation of `ops`, with literals and −0.0, NaN and infinities, on both backends."""

    @dataclass(frozen=True, kw_only=True)
    class Everything(Method):
        name: ClassVar[str] = "everything"
        round_state: ClassVar[dict[str, float]] = {"a": 2.0, "b": -3.0}

        def denom(self, state, hyper):
            return maximum(0.1, absolute(state["b"])) + sqrt(state["a"])

        def step(self, w, state, dx, hyper):
            return 0.3 - (-w) / 7 + 2 * dx - 0.3, {}

        def learn(self, state, dx, s2, hyper):
            a = select(dx > 0.1, state["a"] * 1.1, 1.0 / state["a"])
            return {"a": a, "b": select(dx < 0.0, -state["b"], sign(dx) + state["b"])}

    replicas = [make_replica(Everything(), backend) for backend in ("numba", "reference")]
    for replica in replicas:
        weights = replica.weights.clone()
        weights[:4] = torch.tensor([-0.0, float("nan"), float("inf"), 1e-42])
        replica.restore({"weights": weights, **replica.state}, 0, b"", replica.hyper)
        replica.replay(history(replica.method, 3, 2))
    assert replicas[0].digest() == replicas[1].digest()


@pytest.mark.parametrize(
    ("method", "bad", "good"),
    [
        (HiSo, {"nu": 5.0}, {"nu": 1.0}),
        (HiSo, {"nu": 1.0 + 1e-6}, {"nu": 1.0 + 1e-9}),  # 1 as a float32
        (HiSo, {"eps": 0.0, "floor": 0.0}, {"eps": 0.0, "floor": 0.1}),
        (HiSo, {"eps": 1e-50, "floor": 0.0}, {"floor": 0.0}),
        (HiZoo, {"nu": 2.0}, {"nu": 1.0}),
        (HiZoo, {"nu": 1.0, "floor": 0.0}, {"floor": 0.0}),
        (Momentum, {"beta": 1.0}, {"beta": 0.999}),
        (Momentum, {"beta": 0.99999999}, {"beta": 0.0}),
    ],
)
def test_hyper_parameters_that_blow_up_by_themselves_are_refused(method, bad, good):
    method(**good)
    with pytest.raises(SettingsError):
        method(**bad)
    replica = make_replica(method(**good))
    record = make_record(np.random.default_rng(0), replica.method, 0, changes=bad)
    before = replica.digest()
    with pytest.raises(ProtocolError):
        replica.replay([record])
    assert (replica.position, replica.digest()) == (0, before)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"nu": float("nan")}, {"feed": "some"}])
def test_impossible_hyper_parameters_are_refused(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        HiSo(**bad)


def test_pieces_that_do_not_match_the_declared_state_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Method):
        name: ClassVar[str] = "wrong"
        step_state: ClassVar[dict[str, float]] = {"m": 0.0}

    with pytest.raises(TypeError, match=r"wrong.step gives the states \[\]"):
        make_replica(Wrong())


def test_python_branches_are_refused():
    with pytest.raises(TypeError, match="select"):
        max(var("x"), var("y"))


def test_every_method_is_in_the_suite_and_in_the_table():
    assert {method.name for method in CASES} == set(METHODS)
