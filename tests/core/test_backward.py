"""Exact projections: the kernel, the replica's backward pass, and the probe that is told a step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hiso.core.kernels import PROJECT_TILES, load_kernels
from hiso.core.measure.backward import check_backward, mean_loss
from hiso.core.measure.probe import Probe
from hiso.core.method.registry import HiSo, HiZoo, Momentum, SubspaceNewton, ZoSgd, auto_lr
from hiso.core.noise import TILE
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.noise.reference import direction
from hiso.core.replica.replica import Replica
from hiso.errors import NonFiniteLoss, SettingsError

from ..identities import identity_of
from .conftest import TinyNet, make_record, make_replica

SEED = 2**63 + 12345
IDS = torch.arange(23)
METHODS = [ZoSgd(lr=0.05), HiSo(lr=0.05, nu=0.3), Momentum(lr=0.05)]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def loss_of(module: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(module(IDS).float(), (IDS * 7) % 61)


def moved(method, **arguments) -> Replica:
    """A replica with a history, so that its diagonal differs from weight to weight."""
    replica = make_replica(method, **arguments)
    rng = np.random.default_rng(11)
    replica.replay([make_record(rng, method, r, scale=2.0) for r in range(3)])
    return replica


def directions(replica: Replica, point: Point, count: int) -> np.ndarray:
    """z_p = u_p/denom in float64, by the equations alone, [P, padded]."""
    tiles = range(replica.layout.tiles)
    u = [
        direction("binomial", SEED, round=point.round, step=point.step, stream=point.stream,
                  direction=p, tiles=tiles)
        for p in range(count)
    ]  # fmt: skip
    h = replica.state["h"].double().numpy() if "h" in replica.state else 1.0
    return np.stack(u).astype(np.float64) / np.sqrt(h)


def wide(replica: Replica, w: np.ndarray) -> TinyNet:
    """The model in float64 at flat weights w."""
    module = TinyNet().double().eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            for entry in replica.layout:
                if entry.name == name:
                    here = slice(entry.offset, entry.offset + entry.numel)
                    parameter.copy_(torch.as_tensor(w[here]).view(entry.shape))
    return module


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_limit_of_central_differences(method):
    replica = moved(method)
    replica.write(Point(5, 2))
    loss, g = replica.project(lambda: loss_of(replica.module), stream=4, directions=3)
    w = replica.weights.double().numpy()

    def at(x: np.ndarray) -> float:
        module = wide(replica, x)
        logits = module(IDS)
        return float(nn.functional.cross_entropy(logits, (IDS * 7) % 61).detach())

    for p, z in enumerate(directions(replica, Point(5, 2, 4, 0), 3)):
        near, far = ((at(w + mu * z) - at(w - mu * z)) / (2 * mu) for mu in (1e-4, 2e-4))
        assert g[p] == pytest.approx((4 * near - far) / 3, rel=1e-4, abs=1e-6)
    assert loss == pytest.approx(at(w), rel=1e-6)


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_the_directional_derivative_that_autograd_gives(method, backend):
    replica = moved(method, backend=backend)
    replica.write(Point(3, 0))
    _, g = replica.project(lambda: loss_of(replica.module), stream=0, directions=4)
    module = wide(replica, replica.weights.double().numpy())
    for p, z in enumerate(directions(replica, Point(3, 0, 0, 0), 4)):
        t = torch.zeros((), dtype=torch.float64, requires_grad=True)
        at = {
            e.name: module.get_parameter(e.name)
            + t * torch.as_tensor(z[e.offset : e.offset + e.numel]).view(e.shape)
            for e in replica.layout
        }
        at["head"] = at["embed"]
        logits = torch.func.functional_call(module, at, (IDS,))
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, (IDS * 7) % 61), t)
        assert g[p] == pytest.approx(float(slope), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_a_forward_difference_comes_near(method):
    """What a probe measures by losses at the very same points."""
    replica = moved(method)
    losses = []
    for sign in (1, -1):
        replica.write(Point(9, 1, 2, 0, sign), mu=1e-2)
        with torch.no_grad():
            losses.append(float(loss_of(replica.module)))
    replica.write(Point(9, 1))
    _, g = replica.project(lambda: loss_of(replica.module), stream=2, directions=1)
    assert g[0] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=0.02, abs=1e-3)


LAYOUT = Layout.of([("a", (5,)), ("b", (3 * PROJECT_TILES * TILE + 77,)), ("c", (TILE,))])
POINTS = [Point(7, 2, 3, 0), Point(7, 2, 3, 2**16 - 1)]


@pytest.mark.parametrize("noise", ["binomial", "gaussian"])
@pytest.mark.parametrize("method", [ZoSgd(), HiSo()], ids=lambda m: m.name)
@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
def test_the_kernel_is_the_sum_of_products(backend, method, noise):
    layout = Layout.of([("a", (5,)), ("b", (2 * TILE + 77,))])
    device = torch.device("cpu")
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton has no wheel for this platform")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(3)
    h = torch.rand(layout.tiles * TILE, generator=generator) + 0.3
    kernels = load_kernels(backend, method, noise, SEED, layout, device)
    for entry in layout:
        v = torch.randn(entry.numel, generator=generator)
        state = dict.fromkeys(method.state, h.to(device))
        found = kernels.project(v.to(device), state, method.hyper, POINTS, entry.tiles)
        d = h[entry.offset : entry.offset + entry.numel].double().numpy()
        d = np.sqrt(d) if method.round_state else 1.0
        for g, point in zip(found, POINTS, strict=True):
            u = direction(noise, SEED, round=7, step=2, stream=3, direction=point.direction,
                          tiles=entry.tiles)[: entry.numel]  # fmt: skip
            terms = v.double().numpy() * u.astype(np.float64) / d
            assert g == pytest.approx(math.fsum(terms.tolist()), abs=1e-6 * np.abs(terms).sum())


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_any_number_of_threads_gives_the_same_bits(count, seed):
    kernels = load_kernels("numba", HiSo(), "binomial", SEED, LAYOUT)
    generator = torch.Generator().manual_seed(seed)
    entry = LAYOUT.entries[1]
    v = torch.randn(entry.numel, generator=generator)
    state = {"h": torch.rand(LAYOUT.tiles * TILE, generator=generator) + 0.3}
    with threads(1):
        expected = kernels.project(v, state, HiSo().hyper, POINTS, entry.tiles)
    with threads(count):
        found = kernels.project(v, state, HiSo().hyper, POINTS, entry.tiles)
    assert found.tobytes() == expected.tobytes()


def test_what_is_not_finite_gives_a_number_that_is_not():
    kernels = load_kernels("numba", ZoSgd(), "binomial", SEED, LAYOUT)
    v = torch.zeros(TILE)
    v[3], v[8] = math.inf, -math.inf
    found = kernels.project(v, {}, ZoSgd().hyper, POINTS, LAYOUT.entries[2].tiles)
    assert not np.isfinite(found).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_near(dtype):
    narrow, full = moved(HiSo(lr=0.05), dtype=dtype), moved(HiSo(lr=0.05))
    found = []
    for replica in (narrow, full):
        replica.write(Point(3, 0))
        found.append(replica.project(lambda r=replica: loss_of(r.module), stream=0, directions=8))
    scale = np.linalg.norm(found[1][1])
    assert np.linalg.norm(found[0][1] - found[1][1]) < 0.02 * scale
    assert found[0][0] == pytest.approx(found[1][0], rel=0.02)


def test_rows_of_the_master_weights_pass_gradients_on():
    """The head's rows are float32 in a half-precision model, and belong to the gradient."""
    found = []
    for dtype in ("float32", "bfloat16"):
        replica = moved(ZoSgd(lr=0.05), dtype=dtype)
        replica.write(Point(3, 0))

        def loss(r: Replica = replica) -> torch.Tensor:
            rows = r.rows(r.module.head, torch.tensor([1, 60]))
            return (rows * rows).sum()

        found.append(replica.project(loss, stream=0, directions=5))
    assert found[0][0] == found[1][0]
    assert np.allclose(found[0][1], found[1][1], rtol=0.01, atol=0.01 * np.abs(found[0][1]).max())
    assert np.abs(found[0][1]).max() > 0


def test_parameters_tied_by_storage_alone_add_up():
    module = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)])
    module[1].weight.data = module[0].weight.data
    replica = Replica(module, identity_of(ZoSgd(), seed=1), backend="reference")
    replica.write(Point(0))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    _, both = replica.project(lambda: module[1](module[0](x)).sum(), stream=0, directions=2)
    _, first = replica.project(
        lambda: (x @ module[0].weight.T @ module[1].weight.detach().T).sum(),
        stream=0, directions=2,
    )  # fmt: skip
    _, second = replica.project(
        lambda: (x @ module[0].weight.detach().T @ module[1].weight.T).sum(),
        stream=0, directions=2,
    )  # fmt: skip
    assert np.allclose(both, first + second)


def test_nothing_is_left_behind(tiny):
    """No gradients, not even of what else the loss depends on; the replica stays whole."""
    other = nn.Parameter(torch.ones(()))
    replica = Replica(tiny, identity_of(HiSo(), seed=1))
    before = replica.digest()
    replica.write(Point(0))
    with torch.inference_mode():
        replica.project(lambda: loss_of(tiny) * other, stream=0, directions=2)
    assert other.grad is None
    assert all(parameter.grad is None for parameter in tiny.parameters())
    replica.check()
    replica._digest = None
    assert replica.digest() == before


def test_a_parameter_that_the_loss_ignores_has_no_gradient(tiny):
    replica = Replica(tiny, identity_of(ZoSgd(), seed=1))
    replica.write(Point(0))
    _, g = replica.project(lambda: (tiny.embed * 0).sum(), stream=0, directions=2)
    assert g.tolist() == [0, 0]


def test_where_there_is_no_gradient_it_is_refused(tiny):
    replica = Replica(tiny, identity_of(ZoSgd(), seed=1))
    for point in (None, Point(0, 0, 0, 0, 1)):
        replica.write(point, mu=0.1)
        with pytest.raises(RuntimeError):
            replica.project(lambda: loss_of(tiny), stream=0, directions=2)
    replica.write(Point(0))
    for value in (1.0, [1.0], torch.ones(3), loss_of(tiny).detach(), tiny.embed):
        with pytest.raises(SettingsError, match="gradients"):
            replica.project(lambda v=value: v, stream=0, directions=2)


@pytest.mark.parametrize(
    ("method", "memory"),
    [(HiZoo(), "full"), (SubspaceNewton(), "full"), (auto_lr(HiSo()), "full"), (HiSo(), "lean")],
    ids=["curvature", "scores", "auto", "lean"],
)
def test_refusals(method, memory):
    with pytest.raises(SettingsError, match="backward pass"):
        check_backward(method, memory)
    replica = make_replica(method, memory=memory)
    replica.write(Point(0))
    with pytest.raises(SettingsError, match="backward pass"):
        replica.project(lambda: loss_of(replica.module), stream=0, directions=2)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_not_refused(method):
    check_backward(method)


def test_the_mean_is_that_of_the_forward_passes():
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
    labels = [0, 1, 2, 2, 1, 0]
    each = nn.functional.cross_entropy(scores, torch.tensor(labels), reduction="none")
    for value in ((scores, labels), each, each.mean()):
        assert float(mean_loss(value).detach()) == pytest.approx(float(each.detach().mean()))


def new_probe(**other) -> Probe:
    return Probe(**{"client": 1, "round": 2, "steps": 2, "directions": 3, "mu": 1e-3} | other)


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_a_probe_is_told_whole_steps(scheme):
    probe = new_probe(scheme=scheme)
    told = np.arange(6, dtype=np.float64).reshape(2, 3) / 7
    for k in range(2):
        assert probe.ask().step == k
        probe.tell_step(2.5 - k, told[k])
    assert probe.ask() is None
    assert np.array_equal(probe.scalars, told.astype(np.float32))
    assert probe.loss == 2.5
    with pytest.raises(RuntimeError):
        probe.tell_step(1.0, told[0])


def test_a_probe_refuses_half_a_step():
    three = np.zeros(3)
    begun, curved = new_probe(), new_probe(with_curvature=True)
    begun.tell(1.0)
    solving = new_probe(solve=lambda local, facts: (local.gradient, {}))
    for probe in (begun, curved, solving):
        with pytest.raises(RuntimeError):
            probe.tell_step(1.0, three)
    with pytest.raises(ValueError, match="shape"):
        new_probe().tell_step(1.0, np.zeros(2))


@pytest.mark.parametrize(
    ("loss", "scalars"),
    [(math.nan, [0, 0, 0]), (math.inf, [0, 0, 0]), (1.0, [0, math.nan, 0]), (1.0, [0, 0, 1e39])],
)
def test_what_is_not_finite_is_no_answer(loss, scalars):
    with pytest.raises(NonFiniteLoss) as caught:
        new_probe().tell_step(loss, np.array(scalars, np.float64))
    assert (caught.value.round, caught.value.client) == (2, 1)
