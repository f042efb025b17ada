"""Per-example gradients and Gauss–Newton factors, and the expected progress with a diagonal h."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Factors:
    """N examples at one point, with s of the weights.

    Attributes:
        gradients: ∇ of each example's loss, [N, s].
        factors: F with GGN = (1/N) Σ_n F_nᵀF_n, [N, C, s].
        stands_for: Number of weights that each of the s weights represents, [s]; 1 if s = d.
        whole: Whether these are all examples; otherwise they are a sample, and the part of squares
            that comes from the sample's noise is subtracted.
    """

    gradients: Array
    factors: Array
    stands_for: Array
    whole: bool = False

    def pick(self, examples: NDArray[np.integer]) -> Factors:
        """The factors of some of the examples."""
        return replace(self, gradients=self.gradients[examples], factors=self.factors[examples])

    def keep(self, weights: NDArray[np.bool_]) -> Factors:
        """The factors at some of the weights."""
        return replace(
            self,
            gradients=self.gradients[:, weights],
            factors=self.factors[:, :, weights],
            stands_for=self.stands_for[weights],
        )

    @cached_property
    def diagonal(self) -> NDArray[np.float64]:
        """The Gauss–Newton matrix's diagonal, [s]."""
        n = len(self.gradients)
        return np.einsum("ncs,ncs->s", self.factors, self.factors, dtype=np.float64) / n

    @cached_property
    def squared_gradient(self) -> NDArray[np.float64]:
        """Unbiased square of the mean gradient, [s]; for a sample, single values may be < 0."""
        n = len(self.gradients)
        square = self.gradients.mean(0, dtype=np.float64) ** 2
        return square if self.whole else square - self.variance / n

    @cached_property
    def variance(self) -> NDArray[np.float64]:
        """Variance of a single example's gradient, [s]."""
        return self.gradients.var(0, ddof=0 if self.whole else 1, dtype=np.float64)

    def second_moment(self, batch: int) -> NDArray[np.float64]:
        """E ĝ² for batches of `batch` independent examples, [s]."""
        return np.maximum(self.squared_gradient, 0) + self.variance / batch


@dataclass(frozen=True)
class Outlook:
    """The effect of one round of HiSo with a fixed h on the loss, to second order.

    f(x + Δ) − f(x) = −lr·gᵀE[dx] + ½ lr² E[dxᵀA dx], A the Gauss–Newton matrix. With a = ĝ/√h and
    Ã = H^(-½) A H^(-½), for normal directions,

        gᵀE[dx] = gᵀH⁻¹g            E[dxᵀA dx] = E‖a‖²·Tr Ã/P + (1 + 1/P)·E aᵀÃa

    Attributes:
        gain: gᵀH⁻¹g, for the part of the loss that all batches have in common.
        noise: Tr(H⁻¹ Cov ĝ).
        zeta: Tr Ã: HiSo's ζ.
        bend: E aᵀÃa.
        directions: P.
    """

    gain: float
    noise: float
    zeta: float
    bend: float
    directions: int

    @property
    def cost(self) -> float:
        """E[dxᵀA dx]."""
        p = self.directions
        return (self.gain + self.noise) * self.zeta / p + (1 + 1 / p) * self.bend

    @property
    def progress(self) -> float:
        """Expected decrease of the loss in a round with the best learning rate."""
        return max(self.gain, 0.0) ** 2 / (2 * self.cost)

    @property
    def best_lr(self) -> float:
        """The learning rate with the largest expected decrease."""
        return max(self.gain, 0.0) / self.cost


def outlook(factors: Factors, h: NDArray[np.float64], *, directions: int, batch: int) -> Outlook:
    """The outlook for h [s] (any scale) with `batch` examples per round over all clients.

    For a sample, terms for two independent examples leave out pairs of an example with itself.
    """
    n = len(factors.gradients)
    over = factors.stands_for / h
    variance = float(over @ factors.variance)
    gain = float(over @ factors.squared_gradient)
    weighted = factors.gradients * over.astype(factors.gradients.dtype)
    flat = factors.factors.reshape(n, -1, factors.gradients.shape[1])
    dots = np.einsum("ncs,ms->nmc", flat, weighted, optimize=True).astype(np.float64)
    if factors.whole:
        single = float((dots**2).sum(2).mean())
        common = float((dots.mean(1) ** 2).sum(1).mean())
    else:
        apart = ~np.eye(n, dtype=bool)
        single = float((dots**2).sum(2)[apart].mean())
        # Over pairs of different examples m, m', both different from n: (Σ_m d)² − Σ_m d².
        rest = dots * apart[:, :, None]
        pairs = (rest.sum(1) ** 2 - (rest**2).sum(1)).sum(1)
        common = float(pairs.mean()) / ((n - 1) * (n - 2))
    bend = common + (single - common) / batch
    return Outlook(gain, variance / batch, float(over @ factors.diagonal), bend, directions)


def shape_of(candidate: str, factors: Factors, *, share: float, batch: int) -> NDArray[np.float64]:
    """A measured diagonal as H, [d], with mean 1: it sets relative step sizes only.

    Args:
        candidate: gauss_newton, gauss_newton_sqrt, or second_moment_sqrt.
        factors: Gradients and Gauss–Newton factors at the weights.
        share: Smallest value, divided by the diagonal's mean.
        batch: Examples per round over all clients, for E ĝ².
    """
    moments = candidate == "second_moment_sqrt"
    diagonal = factors.second_moment(batch) if moments else factors.diagonal
    h = np.maximum(diagonal, share * diagonal.mean())
    if candidate != "gauss_newton":
        h = np.sqrt(h)
    return h / h.mean()
