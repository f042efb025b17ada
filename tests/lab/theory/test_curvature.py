"""Second derivatives: products, Hutchinson, Lanczos and factors against matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso.lab.theory.curvature.digits import factors_of
from hiso.lab.theory.curvature.factors import Factors, outlook, shape_of
from hiso.lab.theory.curvature.lanczos import top_eigenvalues
from hiso.lab.theory.curvature.second_derivatives import (
    FlatModel,
    gauss_newton_product,
    hessian_product,
    hutchinson,
    matrix,
    softmax_factors,
)

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # What torch imports for forward differentiation uses what torch itself deprecates.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, labels = torch.randn(20, 4).double(), torch.randint(0, 3, (20,))
    at = nn.utils.parameters_to_vector(module.parameters()).detach()
    return FlatModel(module, inputs, labels), at


@pytest.fixture(scope="module")
def exact(net):
    model, at = net
    return torch.autograd.functional.hessian(model.loss, at)


def ggn(model, at):
    jacobian = torch.autograd.functional.jacobian(model.outputs, at)
    p = model.outputs(at).softmax(1)
    bend = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncd,nce,nef->df", jacobian, bend, jacobian) / len(p)


def test_products_are_those_of_the_matrices(net, exact):
    model, at = net
    torch.testing.assert_close(matrix(hessian_product(model.loss, at), at), exact)
    product = gauss_newton_product(model.outputs, model.criterion, at)
    torch.testing.assert_close(matrix(product, at), ggn(model, at))


def test_for_a_linear_model_gauss_newton_is_the_hessian():
    torch.manual_seed(1)
    module = nn.Linear(5, 3).double()
    model = FlatModel(module, torch.randn(12, 5).double(), torch.randint(0, 3, (12,)))
    at = nn.utils.parameters_to_vector(module.parameters()).detach()
    newton = gauss_newton_product(model.outputs, model.criterion, at)
    torch.testing.assert_close(matrix(newton, at), matrix(hessian_product(model.loss, at), at))


def test_factors_give_gradients_and_gauss_newton(net):
    model, at = net
    jacobians = model.jacobians(at, chunk=7)
    gradients, rows = softmax_factors(jacobians, model.outputs(at), model.labels)
    torch.testing.assert_close(gradients.mean(0), torch.func.grad(model.loss)(at))
    torch.testing.assert_close(torch.einsum("ncd,nce->de", rows, rows) / 20, ggn(model, at))


def test_a_measured_diagonal_becomes_a_shape(net):
    model, at = net
    factors, exact = factors_of(model, at), ggn(model, at).diagonal().numpy()
    shape = shape_of("gauss_newton", factors, share=0.5, batch=4)
    assert shape.mean() == pytest.approx(1)
    high = exact > exact.mean() / 2
    assert 0 < high.sum() < len(exact)
    np.testing.assert_allclose(shape[high] / shape.max(), exact[high] / exact.max())
    np.testing.assert_allclose(shape[~high] / shape.max(), exact.mean() / 2 / exact.max())
    root = shape_of("gauss_newton_sqrt", factors, share=0.5, batch=4)
    np.testing.assert_allclose(root / root.max(), np.sqrt(shape / shape.max()))
    gradient = torch.func.grad(model.loss)(at).numpy()
    whole = shape_of("second_moment_sqrt", factors, share=1e-12, batch=10**9)
    np.testing.assert_allclose(whole / whole.max(), abs(gradient) / abs(gradient).max(), rtol=1e-3)


@pytest.mark.parametrize("seed", [1, 2])
def test_hutchinson_finds_diagonal_and_trace_within_its_errors(net, exact, seed):
    model, at = net
    found = hutchinson(hessian_product(model.loss, at), at, probes=400, seed=seed)
    off = (found.trace.value - exact.trace()).abs() / found.trace.error
    assert off < 4
    # The error is that of theory: a row's other elements, over the probes.
    others = (exact**2).sum(1) - torch.diagonal(exact) ** 2
    torch.testing.assert_close(found.diagonal.error, (others / 400).sqrt(), rtol=0.25, atol=1e-6)
    off = (found.diagonal.value - torch.diagonal(exact)).abs() / found.diagonal.error
    assert off.max() < 5
    assert (off > 1).double().mean() > 0.1


def test_lanczos_finds_the_top_of_the_spectrum(net, exact):
    model, at = net
    found = top_eigenvalues(hessian_product(model.loss, at), at, 4, tolerance=1e-9)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(exact.numpy())[::-1][:4], rtol=1e-7)


def simulated(factors, h, batch, directions, rounds):
    """gᵀE[dx], and E[dxᵀA dx], by drawing normal directions and batches."""
    generator = np.random.Generator(np.random.Philox(3))
    n, d = factors.gradients.shape
    mean = factors.gradients.mean(0)
    ggn = np.einsum("ncs,nct->st", factors.factors, factors.factors) / n
    gains, costs = [], []
    for _ in range(rounds):
        a = factors.gradients[generator.integers(0, n, batch)].mean(0) / np.sqrt(h)
        u = generator.normal(size=(directions, d))
        dx = (u @ a) @ u / directions / np.sqrt(h)
        gains.append(mean @ dx)
        costs.append(dx @ ggn @ dx)
    return np.array(gains), np.array(costs)


@pytest.mark.parametrize("shaped", [False, True])
def test_the_outlook_is_what_simulation_gives(net, shaped):
    model, at = net
    gradients, rows = softmax_factors(model.jacobians(at), model.outputs(at), model.labels)
    factors = Factors(gradients.numpy(), rows.numpy(), np.ones(len(at)), whole=True)
    h = np.linspace(0.5, 3, len(at)) if shaped else np.ones(len(at))
    found = outlook(factors, h, directions=3, batch=2)
    gains, costs = simulated(factors, h, 2, 3, 20_000)
    for value, drawn in ((found.gain, gains), (found.cost, costs)):
        assert abs(value - drawn.mean()) < 4 * drawn.std() / np.sqrt(len(drawn))
    lr = found.best_lr
    assert found.progress == pytest.approx(lr * found.gain - lr**2 * found.cost / 2)


def test_a_samples_outlook_is_that_of_the_whole_on_average():
    generator = np.random.Generator(np.random.Philox(4))
    gradients = generator.normal(size=(400, 6)) + 0.5
    whole = Factors(gradients, gradients[:, None] * 0.7, np.ones(6), whole=True)
    h = np.linspace(1, 2, 6)
    expected = outlook(whole, h, directions=5, batch=8)
    sample = Factors(whole.gradients, whole.factors, whole.stands_for)
    parts = [
        outlook(sample.pick(generator.permutation(400)[:40]), h, directions=5, batch=8)
        for _ in range(200)
    ]
    for name in ("gain", "noise", "zeta"):
        drawn = np.array([getattr(part, name) for part in parts])
        error = 4 * drawn.std() / np.sqrt(200) + 0.01 * abs(drawn.mean())
        assert abs(drawn.mean() - getattr(expected, name)) < error
    assert outlook(sample, h, directions=5, batch=8).bend == pytest.approx(expected.bend, rel=0.05)


def test_drawn_weights_stand_for_the_others():
    generator = np.random.Generator(np.random.Philox(5))
    gradients = generator.normal(size=(10, 4))
    all_of_them = Factors(
        np.repeat(gradients, 3, 1), np.repeat(gradients, 3, 1)[:, None], np.ones(12)
    )
    drawn = Factors(gradients, gradients[:, None], np.full(4, 3.0))
    h = np.linspace(1, 2, 4)
    one = outlook(all_of_them, np.repeat(h, 3), directions=5, batch=4)
    other = outlook(drawn, h, directions=5, batch=4)
    for name in ("gain", "noise", "zeta", "bend"):
        assert getattr(other, name) == pytest.approx(getattr(one, name))
