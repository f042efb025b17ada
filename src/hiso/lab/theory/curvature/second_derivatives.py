"""Second derivatives of a loss in one flat vector of weights: products, exact, and by Hutchinson.

A product is a function v ↦ A v, computed by torch.func with forward-over-reverse differentiation,
so that the matrix is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

Product = Callable[[Tensor], Tensor]
"""v ↦ A v for a symmetric A, both [d]."""


class FlatModel:
    """A network and its cross-entropy on fixed data, as functions of one vector of weights [d].

    Attributes:
        inputs: [N, …].
        labels: int64 [N].
        shapes: Shape of each trainable parameter by name, in the vector's order.
    """

    def __init__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self._module, self.inputs, self.labels = module, inputs, labels
        self.shapes = {n: p.shape for n, p in module.named_parameters() if p.requires_grad}

    def outputs(self, weights: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Logits [N, C]."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()])
        named = {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
        return functional_call(self._module, named, (self.inputs if inputs is None else inputs,))

    def criterion(self, outputs: Tensor) -> Tensor:
        """Mean cross-entropy of logits [N, C]."""
        return nn.functional.cross_entropy(outputs, self.labels)

    def loss(self, weights: Tensor) -> Tensor:
        """Mean cross-entropy, a scalar."""
        return self.criterion(self.outputs(weights))

    def jacobians(self, weights: Tensor, chunk: int = 256) -> Tensor:
        """Derivatives of each example's logits, [N, C, d]."""

        def one(example: Tensor) -> Tensor:
            return jacrev(lambda w: self.outputs(w, example[None])[0])(weights)

        return vmap(one, chunk_size=chunk)(self.inputs)


def hessian_product(loss: Callable[[Tensor], Tensor], at: Tensor) -> Product:
    """Products with ∇²loss(at)."""
    return lambda v: jvp(grad(loss), (at,), (v,))[1]


def gauss_newton_product(
    outputs: Callable[[Tensor], Tensor], criterion: Callable[[Tensor], Tensor], at: Tensor
) -> Product:
    """Products with JᵀBJ: J the derivative of `outputs` at `at`, B the Hessian of `criterion`."""

    def product(v: Tensor) -> Tensor:
        z, along = jvp(outputs, (at,), (v,))[:2]
        bent = jvp(grad(criterion), (z,), (along,))[1]
        return vjp(outputs, at)[1](bent)[0]

    return product


def matrix(product: Product, like: Tensor) -> Tensor:
    """A itself, [d, d]: d products."""
    return torch.stack([product(row) for row in torch.eye(len(like), dtype=like.dtype)])


def softmax_factors(jacobians: Tensor, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Per-example gradients, and factors of the Gauss–Newton matrix, of cross-entropy.

    Args:
        jacobians: J, [N, C, d].
        logits: [N, C].
        labels: int64 [N].

    Returns:
        E [N, d], ∇ of each example's loss: (p − onehot)ᵀJ; and F [N, C, d] with
        GGN = (1/N) Σ FᵀF, F_c = √p_c · (J_c − pᵀJ), because
        diag(p) − ppᵀ = Σ p_c (e_c − p)(e_c − p)ᵀ.
    """
    p = logits.softmax(1)
    mean = torch.einsum("nc,ncd->nd", p, jacobians)
    right = jacobians[torch.arange(len(labels)), labels]
    return mean - right, p.sqrt()[..., None] * (jacobians - mean[:, None])


@dataclass(frozen=True)
class Estimate:
    """A mean over random probes with its standard error, each a number or [d]."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class Probed:
    """Hutchinson's estimates for a matrix.

    Attributes:
        diagonal: E u·(Au), [d].
        trace: E uᵀAu.
        probes: Number of probes.
    """

    diagonal: Estimate
    trace: Estimate
    probes: int


def hutchinson(product: Product, like: Tensor, *, probes: int, seed: int) -> Probed:
    """Diagonal and trace of A from `probes` ≥ 2 products with signs u = ±1.

    Source: Hutchinson (1990); Bekas, Kokiopoulou, Saad (2007) for the diagonal. The error of a
    diagonal element comes from the off-diagonal elements of its row.
    """
    generator = torch.Generator().manual_seed(seed)
    total, square = torch.zeros_like(like), torch.zeros_like(like)
    traces: list[Tensor] = []
    for _ in range(probes):
        u = 2.0 * torch.randint(0, 2, like.shape, generator=generator).to(like) - 1
        sample = u * product(u)
        total += sample
        square += sample**2
        traces.append(sample.sum())
    mean = total / probes
    variance = (square / probes - mean**2).clamp_min(0) * probes / (probes - 1)
    trace = torch.stack(traces)
    return Probed(
        Estimate(mean, (variance / probes).sqrt()),
        Estimate(trace.mean(), trace.std() / probes**0.5),
        probes,
    )
