"""What label scores say along directions, against automatic differentiation in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hiso.core.measure.local import Local
from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Probe, passes
from hiso.core.method.registry import SubspaceNewton
from hiso.errors import NonFiniteLoss, SettingsError

HYPER = {"lr": 0.5, "ridge": 0.7}
FRESH = {"c": 0.0}


def outcome(scores: np.ndarray, labels: np.ndarray) -> Outcome:
    return Outcome.of_scores(scores.astype(np.float32), labels)


Measured = tuple[np.ndarray, np.ndarray, np.ndarray]
"""J [B, P, C], probabilities [B, C] and labels [B]."""


def measured_some(seed: int, size: int, directions: int, classes: int) -> Measured:
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.standard_normal((size, classes)))
    jacobian = rng.standard_normal((size, directions, classes))
    return jacobian, spread / spread.sum(1, keepdims=True), rng.integers(classes, size=size)


def solve(local: Local, c: float = 0.0, ridge: float = 0.7) -> tuple[np.ndarray, float]:
    alpha, facts = SubspaceNewton().solve(local, {}, {"lr": 0.5, "ridge": ridge}, {"c": c})
    return alpha, facts["t"]


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_gradient_and_gauss_newton_are_those_of_automatic_differentiation(classes, scheme):
    """A network in float64: J and the Hessian of the loss in f by backward passes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, classes)).double()
    x, y = torch.randn(6, 5).double(), torch.randint(classes, (6,))
    names, start = zip(*((n, p.detach()) for n, p in net.named_parameters()), strict=True)
    z = [tuple(torch.randn_like(p) for p in start) for _ in range(4)]

    def scores(*weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x,))

    def moved(direction: tuple[torch.Tensor, ...], by: float) -> Outcome:
        at = scores(*(w + by * d for w, d in zip(start, direction, strict=True)))
        return Outcome(np.zeros(6), np.ones(6), at.detach().numpy(), y.numpy())  # float64 scores

    mu = 1e-5
    behind = [moved(d, -mu) for d in z] if scheme == "central" else []
    local = Local.of(moved(z[0], 0.0), [moved(d, mu) for d in z], behind, mu)
    slopes = torch.func.jacrev(scores, argnums=tuple(range(len(start))))(*start)
    along = [[(s * v).flatten(2).sum(2) for s, v in zip(slopes, d, strict=True)] for d in z]
    j = torch.stack([sum(parts) for parts in along], 1)
    loss = nn.functional.cross_entropy
    f = scores(*start)
    g = torch.func.grad(lambda at: loss(at, y))(f)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda at: loss(at, y)))(f)
    gradient = torch.einsum("bpc,bc->p", j, g).numpy()
    gauss_newton = torch.einsum("bpc,bcde,dqe->pq", j, hessian, j).numpy()
    tolerance = 1e-3 if scheme == "forward" else 1e-6
    assert local.gradient == pytest.approx(gradient, rel=tolerance, abs=tolerance * 0.1)
    assert local.gauss_newton == pytest.approx(gauss_newton, rel=tolerance, abs=tolerance * 0.1)


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 8), st.sampled_from([2, 3, 10]))
def test_the_step_against_sums_written_out(seed, size, directions, classes):
    """Fewer examples than directions, and batches of one class, among them."""
    jacobian, probabilities, labels = measured_some(seed, size, directions, classes)
    local = Local.of_scores(jacobian, probabilities, labels)
    a, g = np.zeros((directions, directions)), np.zeros(directions)
    f = np.zeros((directions, directions))
    for i in range(size):
        p, j = probabilities[i], jacobian[i]
        a += j @ (np.diag(p) - np.outer(p, p)) @ j.T / size
        slope = j @ (p - np.eye(classes)[labels[i]])
        g += slope / size
        f += np.outer(slope, slope) / size
    assert local.fisher == pytest.approx(f)
    mean = max(np.trace(a), np.trace(f)) / directions
    assert local.gauss_newton == pytest.approx(a, rel=1e-9, abs=1e-12)
    assert local.gradient == pytest.approx(g, rel=1e-9, abs=1e-12)
    assert np.array_equal(local.gauss_newton, local.gauss_newton.T)
    assert np.linalg.eigvalsh(local.gauss_newton).min() >= -1e-12
    alpha, t = solve(local)
    assert t == pytest.approx(mean)
    assert alpha == pytest.approx(np.linalg.inv(a + 0.7 * t * np.eye(directions)) @ g, rel=1e-6)
    known, t = solve(local, c=3.0)
    assert t == pytest.approx(mean)
    assert known == pytest.approx(np.linalg.inv(a + 2.1 * np.eye(directions)) @ g, rel=1e-6)


def test_one_direction_is_newtons_method_in_one_dimension():
    local = Local.of_scores(*measured_some(1, 8, 1, 3))
    alpha, _ = solve(local, c=1.0, ridge=1e-9)
    assert alpha[0] == pytest.approx(local.gradient[0] / local.gauss_newton[0, 0])


@given(st.permutations(range(5)))
def test_permuted_directions_permute_the_step(order):
    jacobian, *rest = measured_some(2, 4, 5, 3)
    permuted = Local.of_scores(jacobian[:, order], *rest)
    local = Local.of_scores(jacobian, *rest)
    assert solve(permuted)[0] == pytest.approx(solve(local)[0][order], rel=1e-9)


def test_where_the_right_labels_are_certain_nothing_moves():
    jacobian, _, labels = measured_some(3, 4, 5, 3)
    certain = Local.of_scores(jacobian, np.eye(3)[labels], labels)
    assert solve(certain)[0].tolist() == [0.0] * 5
    alpha, t = solve(certain, c=1.0)
    assert (alpha.tolist(), t) == ([0.0] * 5, 0.0)


def test_scores_that_saturate_give_a_finite_step():
    rng, labels = np.random.default_rng(3), np.arange(4) % 3
    told = [outcome(1e4 * rng.standard_normal((4, 3)), labels) for _ in range(6)]
    assert np.isfinite(solve(Local.of(told[0], told[1:], [], 1e-2))[0]).all()


def test_a_fresh_model_that_is_sure_of_wrong_labels_takes_no_giant_step():
    """Its curvature is nearly 0, and 1000 times as large where it is going."""
    jacobian, _, labels = measured_some(4, 6, 3, 2)
    fresh = Local.of_scores(jacobian, np.eye(2)[1 - labels] * (1 - 2e-4) + 1e-4, labels)
    naive = np.abs(solve(fresh, c=float(np.trace(fresh.gauss_newton)) / 3)[0])
    assert (np.abs(solve(fresh)[0]) < naive / 100).all()


@given(st.integers(0, 999), st.integers(1, 6), st.integers(1, 8))
def test_losses_of_tokens_give_the_empirical_fisher_matrix(seed, size, directions):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, size)

    def told() -> Outcome:
        tokens = rng.random(counts.sum())
        sums = [part.sum() for part in np.split(tokens, np.cumsum(counts)[:-1])]
        return Outcome(np.array(sums), counts.astype(np.float64), tokens=tokens)

    base, *ahead = (told() for _ in range(directions + 1))
    local = Local.of(base, ahead, [], 0.1)
    a = np.zeros((directions, directions))
    for j, at in enumerate(base.tokens):
        slope = np.array([(high.tokens[j] - at) / 0.1 for high in ahead])
        a += np.outer(slope, slope) / counts.sum()
    assert local.gradient == pytest.approx([(high.mean - base.mean) / 0.1 for high in ahead])
    assert local.gauss_newton == pytest.approx(a)
    assert local.parts == counts.mean()
    assert np.array_equal(local.fisher, local.gauss_newton)


def test_the_curvature_along_the_gradient_is_the_larger_one():
    low, high = np.diag([1.0, 2.0]), np.diag([2.0, 3.0])
    for pair in ((low, high), (high, low)):
        local = Local(np.array([3.0, 4.0]), *pair, 1, 1.0, 2)
        assert local.gradient_curvature == pytest.approx((18 + 48) / 25)
    assert Local(np.zeros(2), low, high, 1, 1.0, 2).gradient_curvature == 0.0


def test_the_more_an_example_says_the_smaller_the_ridge():
    told = Local(np.ones(2), np.eye(2), np.eye(2), 4, 10.0, 2)
    assert solve(told, c=1.0)[0] == pytest.approx([1 / 1.07] * 2)


def test_memory_of_the_mean_curvature():
    method = SubspaceNewton()

    class Told:
        def __init__(self, t: float) -> None:
            self.facts = {"t": t}

    state = dict(method.derived)
    for t, c in ((0.0, 0.0), (2.0, 2.0), (4.0, 2.2), (0.0, 1.98)):
        state = dict(method.remember(state, Told(t)))  # pyright: ignore
        assert state["c"] == pytest.approx(c)


def measured(scheme: str, steps: int = 1, **arguments) -> tuple[Probe, int]:
    rng, asked = np.random.default_rng(5), 0
    method = SubspaceNewton()
    probe = Probe(
        client=0, round=0, steps=steps, directions=3, mu=0.5, scheme=scheme, divided=False,
        solve=lambda local, facts: method.solve(local, facts, HYPER, FRESH), **arguments,
    )  # fmt: skip
    while probe.ask() is not None:
        probe.tell(outcome(rng.standard_normal((4, 3)), np.arange(4) % 3))
        asked += 1
    return probe, asked


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_a_probe_measures_the_base_and_replies_with_the_step(scheme):
    probe, asked = measured(scheme)
    assert asked == passes(3, scheme, scores=True)
    rng, labels = np.random.default_rng(5), np.arange(4) % 3
    told = [outcome(rng.standard_normal((4, 3)), labels) for _ in range(asked)]
    ahead, behind = (told[1::2], told[2::2]) if scheme == "central" else (told[1:], [])
    local = Local.of(told[0], ahead, behind, 0.5)
    alpha, t = solve(local)
    assert probe.scalars[0].tolist() == alpha.astype(np.float32).tolist()
    assert probe.facts == {"t": float(np.float32(t))}
    assert probe.loss == told[0].mean
    assert probe.coefficients(0).tolist() == probe.scalars[0].tolist()


def test_a_local_step_is_told_the_facts_of_the_one_before():
    seen = []

    def spy(local: Local, facts: dict[str, float]) -> tuple[np.ndarray, dict[str, float]]:
        seen.append(dict(facts))
        return local.gradient, {"t": 1.0 + len(seen)}

    probe = Probe(client=0, round=0, steps=3, directions=1, mu=0.5, solve=spy)
    while probe.ask() is not None:
        probe.tell(outcome(np.eye(2), np.arange(2)))
    assert seen == [{}, {"t": 2.0}, {"t": 3.0}]
    assert probe.facts == {"t": 4.0}


def test_a_mean_loss_alone_is_refused_and_an_infinite_step_named():
    probe, _ = measured("forward")
    probe = Probe(client=0, round=0, steps=1, directions=1, mu=0.5, solve=lambda *_: (None, {}))  # pyright: ignore
    with pytest.raises(SettingsError, match=r"scores \[B, C\]"):
        probe.tell(0.5)
    assert probe.ask() is not None
    endless = Probe(
        client=0, round=0, steps=1, directions=1, mu=0.5,
        solve=lambda *_: (np.array([np.inf]), {}),
    )  # fmt: skip
    endless.tell(outcome(np.eye(2), np.arange(2)))
    with pytest.raises(NonFiniteLoss, match="beyond float32"):
        endless.tell(outcome(np.eye(2), np.arange(2)))
