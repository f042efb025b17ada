"""Compares h with the true Hessian in one parameter of a language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiso.core.replica.replica import Replica
from hiso.errors import SettingsError
from hiso.lab.theory.curvature.lanczos import top_eigenvalues
from hiso.lab.theory.curvature.second_derivatives import Product, hutchinson
from hiso.lab.theory.fit import rank_correlation
from hiso.lab.theory.language.examples import Margins
from hiso.workloads.text.encode import Encoded


class LayerHessian:
    """Products with ∇² of the examples' mean loss in one parameter; the others are fixed.

    The first derivatives are kept with their graph, so a product takes one backward pass per
    example, which ends at the parameter.

    Attributes:
        gradient: The mean gradient [d].
        squares: Mean square of the examples' gradients [d].
        gauss_newton: Diagonal of the Gauss–Newton matrix [d].
    """

    def __init__(self, margins: Margins, weight: Tensor, examples: Sequence[Encoded]) -> None:
        self._weight, self._gradients = weight, list[Tensor]()
        self.squares = torch.zeros(weight.numel())
        self.gauss_newton = torch.zeros(weight.numel())
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for example in examples:
                margin = margins(example)
                sign = 1 - 2 * int(example.label or 0)
                loss = torch.nn.functional.softplus(sign * margin)
                (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
                self._gradients.append(slope.reshape(-1))
                flat = slope.detach().reshape(-1)
                p = float(torch.sigmoid(margin.detach().double()))
                residual = p - int(example.label or 0)
                self.squares += flat**2 / len(examples)
                self.gauss_newton += flat**2 * (p * (1 - p) / residual**2) / len(examples)
        self.gradient = torch.stack([g.detach() for g in self._gradients]).mean(0)

    @property
    def product(self) -> Product:
        """v ↦ ∇²f v, both [d]."""

        def apply(v: Tensor) -> Tensor:
            total = torch.zeros_like(v)
            for gradient in self._gradients:
                (part,) = torch.autograd.grad(gradient @ v, self._weight, retain_graph=True)
                total += part.reshape(-1)
            return total / len(self._gradients)

        return apply


def look_at_layer(
    margins: Margins,
    replica: Replica,
    name: str,
    examples: Sequence[Encoded],
    *,
    probes: int,
    eigenvalues: int,
) -> dict[str, Any]:
    """Compares h of one parameter with Hutchinson's estimate of the Hessian's diagonal, and others.

    Raises:
        SettingsError: There is no such trainable parameter.
    """
    entry = next((e for e in replica.layout if e.name == name), None)
    if entry is None:
        names = [e.name for e in replica.layout]
        raise SettingsError(f"layers: no parameter {name}; there are: {', '.join(names[:12])}, …")
    weight = dict(replica.module.named_parameters())[name]
    hessian = LayerHessian(margins, weight, examples)
    like = torch.zeros(entry.numel)
    probed = hutchinson(hessian.product, like, probes=probes, seed=1)
    again = hutchinson(hessian.product, like, probes=probes, seed=2)
    h = replica.state["h"][entry.offset : entry.offset + entry.numel].numpy()
    diagonal = (probed.diagonal.value + again.diagonal.value) / 2
    top = top_eigenvalues(hessian.product, like, eigenvalues, tolerance=1e-2)
    trace = (probed.trace.value + again.trace.value) / 2
    return {
        "layer": name,
        "weights": entry.numel,
        "examples": len(examples),
        "probes": 2 * probes,
        "h_mean": float(h.mean()),
        "h_spread": float(h.std() / h.mean()),
        "rho_hessian": rank_correlation(h, diagonal.abs().numpy()).rho,
        "rho_gauss_newton": rank_correlation(h, hessian.gauss_newton.numpy()).rho,
        "rho_mean_square": rank_correlation(h, hessian.squares.numpy()).rho,
        "chance": float(1 / np.sqrt(entry.numel - 1)),
        "hutchinson_reliability": rank_correlation(
            probed.diagonal.value.numpy(), again.diagonal.value.numpy()
        ).rho,
        "hessian_with_gauss_newton": rank_correlation(
            diagonal.numpy(), hessian.gauss_newton.numpy()
        ).rho,
        "trace_hessian": float(trace),
        "trace_error": float((probed.trace.error**2 + again.trace.error**2).sqrt() / 2),
        "trace_gauss_newton": float(hessian.gauss_newton.sum()),
        "top_hessian": top.tolist(),
    }
