"""The replica: what it holds, what it never touches, and what it refuses."""

from __future__ import annotations

import copy
import os
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.measure.probe import Probe
from hiso.core.method.registry import HiSo, HiZoo, Momentum, ZoSgd
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import NonFiniteLoss, ProtocolError, SettingsError

from ..identities import identity_of
from .conftest import TinyNet, make_record, make_replica

RNG = np.random.default_rng(3)


def test_wrapping_keeps_the_function(tiny):
    ids = torch.arange(12)
    tiny.eval()
    expected = tiny(ids)
    replica = Replica(tiny, identity_of(ZoSgd()))
    assert torch.equal(replica.module(ids), expected)
    assert not tiny.training
    assert replica.numel == 61 * 37 + 37 * 37


def test_tied_weights_are_one(tiny):
    names = [entry.name for entry in Replica(tiny, identity_of(ZoSgd())).layout]
    assert names == ["embed", "body"]
    assert tiny.head is tiny.embed


def test_weights_tied_by_storage_alone_are_one():
    module = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    module[1].weight.data = module[0].weight.data
    replica = Replica(module, identity_of(ZoSgd()))
    assert len(replica.layout.entries) == 1
    replica.write(Point(0, 0, 0, 0, 1), mu=0.1)
    assert torch.equal(module[0].weight, module[1].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_probe_never_writes_w(tiny, dtype):
    frozen, scale = tiny.frozen.clone(), tiny.scale.clone()
    replica = Replica(tiny, identity_of(HiSo(), seed=5, dtype=dtype))
    replica.replay([make_record(RNG, replica.method, 0)])
    digest = replica.digest()
    kept = {"w": replica.weights.clone(), "h": replica.state["h"].clone()}
    replica.write()
    at_w = tiny.embed.detach().clone()
    for p in range(6):
        for sign in (1, -1):
            replica.write(Point(1, 0, 0, p, sign), mu=1e-1)
            assert not torch.equal(tiny.embed, at_w)
    replica.write()
    assert torch.equal(tiny.embed, at_w)
    assert torch.equal(replica.weights, kept["w"])
    assert torch.equal(replica.state["h"], kept["h"])
    replica._digest = None
    assert replica.digest() == digest
    assert torch.equal(tiny.frozen, frozen)
    assert torch.equal(tiny.scale, scale)


def test_a_perturbation_is_mu_u_over_the_denominator(tiny):
    from hiso.core.noise.reference import direction

    replica = Replica(tiny, identity_of(HiSo(), seed=5))
    replica.replay([make_record(RNG, replica.method, 0)])
    replica.write(Point(1, 2, 1, 3, -1), mu=0.5)
    u = direction("binomial", 5, round=1, step=2, stream=1, direction=3, tiles=range(3))
    z = u.astype(np.float64) / np.sqrt(replica.state["h"].double().numpy())
    expected = replica.weights.double().numpy() - 0.5 * z
    assert np.allclose(tiny.embed.detach().numpy().ravel(), expected[: 61 * 37], atol=1e-6)


@pytest.mark.parametrize("sign", [0, 1, -1])
def test_rows_are_float32_from_the_master_weights(sign):
    wide = make_replica(HiSo(), dtype=torch.float32)
    narrow = make_replica(HiSo(), dtype=torch.bfloat16)
    index = torch.tensor([0, 55, 56, 57, 60, 3, 3, 4])
    rows = []
    for replica in (wide, narrow):
        replica.replay([make_record(np.random.default_rng(0), replica.method, 0)])
        replica.write(Point(1, 0, 0, 2, sign), mu=1e-2)
        rows.append(replica.rows(replica.module.head, index))
    assert rows[1].dtype == torch.float32
    assert torch.equal(*rows)
    frozen = narrow.rows(narrow.module.frozen, torch.tensor([1, 2]))
    assert torch.equal(frozen, torch.ones(2))


def test_a_walk_leaves_the_replica_alone_and_matches_a_replay():
    """With one client the aggregated record is the client's own: walk ≡ replay, bit for bit."""
    for method in (ZoSgd(lr=0.1), HiSo(lr=0.1), Momentum(lr=0.1)):
        replica = make_replica(method)
        record = make_record(np.random.default_rng(4), method, 0, steps=3)
        before = replica.digest()
        walk = replica.walk()
        for k in range(3):
            walk.step(round=0, step=k, stream=0, coefficients=record.coefficient[record.step == k])
        replica._digest = None
        assert replica.digest() == before
        replica.replay([record])
        assert torch.equal(walk.weights, replica.weights)


def test_a_walk_uses_the_round_s_changes():
    replica = make_replica(ZoSgd(lr=0.1))
    ones = np.ones(2, np.float32)
    slow, fast = replica.walk(), replica.walk({"lr": 0.2})
    for walk in (slow, fast):
        walk.step(round=0, step=0, stream=0, coefficients=ones)
    moved = [(walk.weights - replica.weights) for walk in (slow, fast)]
    assert torch.allclose(moved[1], 2 * moved[0], atol=1e-6)
    assert replica.hyper == {"lr": 0.1}


def test_a_non_finite_loss_leaves_the_replica_as_it_was():
    replica = make_replica(HiSo())
    before = (replica.digest(), replica.position, replica.chain)
    probe = Probe(client=0, round=0, steps=1, directions=2, mu=1e30)

    def measure() -> None:
        while (point := probe.ask()) is not None:
            replica.write(point, mu=probe.mu)
            probe.tell(float(replica.module(torch.arange(5)).square().mean()))

    with torch.no_grad(), pytest.raises(NonFiniteLoss, match="direction 0"):
        measure()
    replica._digest = None
    assert (replica.digest(), replica.position, replica.chain) == before


def test_a_directional_derivative_matches_autograd(tiny):
    from hiso.core.noise.reference import direction

    replica = Replica(tiny, identity_of(ZoSgd(), seed=9))
    ids = torch.arange(20)
    loss = nn.functional.cross_entropy(tiny(ids), ids)
    loss.backward()
    probe = Probe(client=0, round=4, steps=1, directions=4, mu=1e-3, scheme="central")
    with torch.no_grad():
        while (point := probe.ask()) is not None:
            replica.write(point, mu=probe.mu)
            probe.tell(float(nn.functional.cross_entropy(tiny(ids).double(), ids)))
    for p in range(4):
        u = torch.from_numpy(
            direction("binomial", 9, round=4, step=0, stream=0, direction=p, tiles=range(3))
        )
        exact = sum(
            float((u[e.offset : e.offset + e.numel] * parameter.grad.reshape(-1)).sum())
            for e, parameter in zip(replica.layout, (tiny.embed, tiny.body), strict=True)
        )
        assert probe.scalars[0, p] == pytest.approx(exact, rel=2e-2, abs=2e-3)


def test_only_the_next_record_is_folded():
    replica = make_replica(ZoSgd())
    good = [make_record(RNG, replica.method, r) for r in range(3)]
    before = replica.digest()
    with pytest.raises(ProtocolError, match="round 2 cannot be folded at position 1"):
        replica.replay([good[0], good[2]])
    with pytest.raises(ProtocolError, match="changes beta"):
        replica.replay([make_record(RNG, replica.method, 0, changes={"beta": 1.0})])
    assert (replica.digest(), replica.position) == (before, 0)


def test_a_snapshot_goes_on_like_the_original():
    method = HiSo()
    records = [
        make_record(RNG, method, r, changes={"lr": 0.1} if r == 1 else None) for r in range(5)
    ]
    one, two = make_replica(method), make_replica(method)
    one.replay(records[:3])
    buffers = {"weights": one.weights.clone(), "h": one.state["h"].clone()}
    two.restore(buffers, one.position, one.chain, one.hyper)
    for replica in (one, two):
        replica.replay(records[3:])
    assert (one.digest(), one.chain) == (two.digest(), two.chain)
    with pytest.raises(ProtocolError, match="another model or method"):
        make_replica(ZoSgd()).restore(buffers, 3, b"", {})


def test_digest_sees_every_weight_and_every_bit():
    replica = make_replica(HiSo())
    buffers = {"weights": replica.weights.clone(), "h": replica.state["h"].clone()}

    def digest() -> int:
        replica.restore(buffers, 0, b"", replica.hyper)
        return replica.digest()

    seen = {digest()}
    for buffer in buffers.values():
        for at in (0, 2256, 2048 * 2 + 5):
            buffer.view(torch.int32)[at] ^= 1
            seen.add(digest())
    buffers["weights"][[3, 4]] = buffers["weights"][[4, 3]]
    seen.add(digest())
    assert len(seen) == 8


def test_memory_is_what_the_docstring_says():
    for method, dtype, bytes_per_weight in (
        (ZoSgd(), torch.float32, 8),
        (ZoSgd(), torch.bfloat16, 6),
        (HiSo(), torch.float32, 12),
        (HiSo(), torch.bfloat16, 10),
    ):
        module = nn.Linear(2048, 64, bias=False)
        replica = Replica(module, identity_of(method, dtype=dtype))
        buffers = [replica.weights, *replica.state.values(), module.weight]
        assert sum(b.numel() * b.element_size() for b in buffers) == bytes_per_weight * 2048 * 64


def test_what_cannot_be_trained_is_refused(tiny):
    with pytest.raises(SettingsError, match="no trainable parameter"):
        Replica(nn.Linear(2, 2).requires_grad_(False), identity_of(ZoSgd()))
    with pytest.raises(SettingsError, match="is on meta"):
        Replica(nn.Linear(2, 2, device="meta"), identity_of(ZoSgd()))


def test_frozen_modules_stay_as_they_are():
    net = TinyNet()
    net.body.requires_grad_(False)
    body = net.body
    replica = Replica(net, identity_of(ZoSgd(lr=0.1)))
    replica.replay([make_record(RNG, replica.method, 0)])
    replica.write()
    assert net.body is body
    assert torch.equal(net.body, TinyNet().body)
    assert not torch.equal(net.embed, TinyNet().embed)


def learned_replica(method, backend: str = "numba", **arguments) -> Replica:
    """A replica whose state has moved away from where it started."""
    replica = make_replica(method, backend, **arguments)
    rng = np.random.default_rng(8)
    replica.replay([make_record(rng, method, r, scale=2.0) for r in range(3)])
    return replica


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("method", [ZoSgd(), HiSo(lr=0.1, floor=0.1), Momentum(lr=0.1)])
def test_a_walk_starts_from_the_learned_state(method, backend):
    replica = learned_replica(method, backend)
    record = make_record(np.random.default_rng(4), method, 3, steps=2)
    walk = replica.walk()
    for k in range(2):
        walk.step(round=3, step=k, stream=0, coefficients=record.coefficient[record.step == k])
    replica.replay([record])
    assert torch.equal(walk.weights, replica.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_point_on_a_walk_is_a_point_at_its_weights(dtype):
    method, index = HiSo(lr=0.1, floor=0.1), torch.tensor([3, 60])
    replica, other = (learned_replica(method, dtype=dtype) for _ in range(2))
    walk = replica.walk()
    walk.step(round=3, step=0, stream=0, coefficients=np.ones(2, np.float32))
    other.restore({"weights": walk.weights, **other.state}, other.position, b"", other.hyper)
    for point in (None, Point(3, 1, 0, 2, 1), Point(3, 1, 4, 2, -1)):
        replica.write(point, mu=0.1, walk=walk)
        other.write(point, mu=0.1)
        assert torch.equal(replica.module.embed, other.module.embed)
        rows = [r.rows(r.module.embed, index) for r in (replica, other)]
        assert torch.equal(*rows)
    assert not torch.equal(replica.weights, walk.weights)


def test_a_walk_is_not_kept_alive():
    replica = make_replica(ZoSgd(), dtype=torch.bfloat16)
    walk = replica.walk()
    replica.write(walk=walk)
    gone = weakref.ref(walk)
    del walk
    assert gone() is None
    with pytest.raises(RuntimeError, match="a walk that is gone"):
        replica.rows(replica.module.embed, torch.tensor([0]))


def test_an_interrupted_fold_is_never_taken_for_a_whole_one(monkeypatch):
    replica = make_replica(HiSo())
    replica.digest()
    whole = replica._kernels.fold
    monkeypatch.setattr(replica._kernels, "fold", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        replica.replay([make_record(RNG, replica.method, 0)])
    monkeypatch.setattr(replica._kernels, "fold", whole)
    for use in (replica.digest, replica.write, replica.walk, lambda: replica.replay([])):
        with pytest.raises(ProtocolError, match="interrupted"):
            use()
    fresh = make_replica(HiSo())
    buffers = {"weights": fresh.weights, "h": fresh.state["h"]}
    replica.restore(buffers, 0, b"", fresh.hyper)
    assert replica.digest() == fresh.digest()


def test_hyper_parameters_are_taken_by_name_not_by_order():
    records = [make_record(RNG, HiSo(), r) for r in range(3)]
    straight, turned = make_replica(HiSo()), make_replica(HiSo())
    buffers = {"weights": turned.weights.clone(), "h": turned.state["h"].clone()}
    turned.restore(buffers, 0, b"", dict(reversed(turned.hyper.items())))
    for replica in (straight, turned):
        replica.replay(records)
    assert straight.digest() == turned.digest()
    with pytest.raises(ProtocolError, match="another model or method"):
        turned.restore(buffers, 0, b"", {})
    doubled = {name: buffer.double() for name, buffer in buffers.items()}
    with pytest.raises(ProtocolError, match="another model or method"):
        turned.restore(doubled, 0, b"", turned.hyper)


def test_restore_forgets_the_digest_of_before():
    replica = make_replica(ZoSgd())
    before = replica.digest()
    replica.restore({"weights": replica.weights + 1}, 0, b"", replica.hyper)
    assert replica.digest() != before


@pytest.mark.parametrize("method", [ZoSgd(), HiZoo()])
def test_records_of_the_other_kind_of_method_are_refused(method):
    other = HiZoo() if method.name == "zo_sgd" else ZoSgd()
    with pytest.raises(ProtocolError, match="another method"):
        make_replica(method).replay([make_record(RNG, other, 0)])


def test_rows_must_exist_and_be_fresh():
    replica = make_replica(HiSo(), dtype=torch.bfloat16)
    body = replica.module.body
    for index in ([-1], [37]):
        with pytest.raises(ValueError, match=r"rows 0\.\.36"):
            replica.rows(body, torch.tensor(index))
    with pytest.raises(ValueError, match="own parameters"):
        replica.rows(body[:10], torch.tensor([0]))
    replica.replay([make_record(RNG, replica.method, 0)])
    with pytest.raises(RuntimeError, match="call write"):
        replica.rows(body, torch.tensor([0]))


def overlapping(kind: str) -> nn.Module:
    net = nn.Module()
    net.a = nn.Parameter(torch.randn(6, 6))
    if kind == "transposed":
        net.b = nn.Parameter(net.a.data.T)
    elif kind == "part":
        net.b = nn.Parameter(net.a.data[2:])
    elif kind == "frozen":
        net.b = nn.Parameter(net.a.data, requires_grad=False)
    elif kind == "buffer":
        net.register_buffer("b", net.a.data)
    return net


@pytest.mark.parametrize("kind", ["transposed", "part", "frozen", "buffer"])
def test_memory_that_would_be_untied_is_refused(kind):
    with pytest.raises(SettingsError, match=r"a and b|b and a"):
        Replica(overlapping(kind), identity_of(ZoSgd()))


def test_odd_parameters_are_refused_all_at_once():
    net = nn.Module()
    net.a = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    net.b = nn.Parameter(torch.zeros(1, 4).expand(3, 4))
    with pytest.raises(SettingsError, match=r"a is torch.complex64.*b is an expanded view"):
        Replica(net, identity_of(ZoSgd()))


def test_a_module_serves_one_replica(tiny):
    Replica(tiny, identity_of(ZoSgd()))
    with pytest.raises(SettingsError, match="belongs to another replica"):
        Replica(tiny, identity_of(ZoSgd()))
    Replica(copy.deepcopy(tiny), identity_of(ZoSgd()))


@pytest.mark.parametrize(
    "fields", [{"noise": "gausian"}, {"seed": -1}, {"seed": 2**64}, {"dtype": torch.float64}]
)
def test_typos_are_refused(tiny, fields):
    with pytest.raises(SettingsError):
        identity_of(ZoSgd(), **fields)
    with pytest.raises(SettingsError):
        Replica(tiny, identity_of(ZoSgd()), backend="tritom")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("round", "step", "stream", "directions"),
    [(0, 0, 0, 65537), (0, 65536, 0, 1), (0, 0, 2**32, 1), (2**32, 0, 0, 1)],
)
def test_coordinates_must_fit_the_counter(round, step, stream, directions):
    with pytest.raises(ValueError, match="must lie in"):
        Point(round, step, stream, directions - 1, 1)
    ones = np.ones(directions, np.float32)
    with pytest.raises(ValueError, match="must lie in"):
        make_replica(ZoSgd()).walk().step(round=round, step=step, stream=stream, coefficients=ones)


def test_a_walk_takes_coefficients_of_any_float_type():
    replica = make_replica(ZoSgd(lr=0.1))
    walks = [replica.walk(), replica.walk()]
    for walk, dtype in zip(walks, (np.float32, np.float64), strict=True):
        walk.step(round=0, step=0, stream=0, coefficients=np.array([0.5, 0.25], dtype))
    assert torch.equal(walks[0].weights, walks[1].weights)
    with pytest.raises(ValueError, match="not \\[P\\]"):
        walks[0].step(round=0, step=0, stream=0, coefficients=np.zeros((1, 1), np.float32))


def test_flushed_subnormals_are_refused():
    replica = make_replica(ZoSgd())
    assert torch.set_flush_denormal(True)
    try:
        with pytest.raises(RuntimeError, match="flushed to zero"):
            replica.replay([make_record(RNG, replica.method, 0)])
    finally:
        torch.set_flush_denormal(False)


def test_a_forked_process_can_fold():
    module = nn.Linear(2048, 64, bias=False)
    replica = Replica(module, identity_of(ZoSgd()))
    replica.digest()
    child = os.fork()
    if not child:
        replica._digest = None
        os._exit(0 if replica.digest() else 1)
    assert os.waitpid(child, 0)[1] == 0
