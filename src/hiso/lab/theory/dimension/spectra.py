"""Spectra of diagonal problems, in groups of equal eigenvalues, so that d may be large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiso.errors import SettingsError

Groups = NDArray[np.float64]
"""One number for each group, float64 [G]."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a diagonal Hessian: a head of single eigenvalues, and a tail of equal ones.

    Attributes:
        values: Eigenvalue λ of each group, float64 [G].
        counts: Number of eigenvalues in each group, float64 [G]: 1 for all but the last.
        shares: Fraction of the initial loss in each group, float64 [G], sum 1.
    """

    values: Groups
    counts: Groups
    shares: Groups

    @classmethod
    def headed(
        cls, d: int, *, head: int, condition: float, tail_trace: float, tail_share: float
    ) -> Spectrum:
        """`head` eigenvalues from 1 down to 1/condition, evenly on a logarithmic scale, and a tail.

        The d − head eigenvalues of the tail are equal and sum to `tail_trace` for every d. So the
        trace does not depend on d, and neither does the effective rank κ, because the largest
        eigenvalue is 1.

        Raises:
            SettingsError: The tail is empty, or its eigenvalues would exceed 1.
        """
        if d <= head or tail_trace > d - head:
            raise SettingsError(
                f"d = {d} leaves no tail of trace {tail_trace} with eigenvalues below 1 behind a "
                f"head of {head}: use a larger d"
            )
        values = np.append(np.geomspace(1, 1 / condition, head), tail_trace / (d - head))
        shares = np.append(np.full(head, (1 - tail_share) / head), tail_share)
        return cls(values, np.append(np.ones(head), d - head), shares)

    @classmethod
    def flat(cls, d: int) -> Spectrum:
        """All eigenvalues 1: the worst case, effective rank d."""
        return cls(np.ones(1), np.full(1, float(d)), np.ones(1))

    @property
    def d(self) -> int:
        """Number of weights."""
        return int(self.counts.sum())

    @property
    def head(self) -> int:
        """Number of groups before the last, which is the tail."""
        return len(self.values) - 1

    @property
    def trace(self) -> float:
        """Σ λ, which the paper bounds by L·κ."""
        return float(self.counts @ self.values)

    @property
    def effective_rank(self) -> float:
        """κ = trace / largest eigenvalue."""
        return self.trace / float(self.values.max())

    def whitened_trace(self, h: Groups) -> float:
        """ζ = Tr(H^(-1/2) Σ H^(-1/2)) = Σ λ/h (HiSo, theorem 1), for h by group."""
        return float(self.counts @ (self.values / h))

    def step_unit(self, h: Groups, directions: int) -> float:
        """P / (ζ + (P + 1)·max λ/h), the unit of learning rates.

        With u of unit variance, E dx·∇²f·dx is at most this denominator times gᵀH⁻¹g / P. So the
        unit maximises a bound on one step's expected progress; by this bound, steps above twice
        the unit may increase the loss.
        """
        top = float((self.values / h).max())
        return directions / (self.whitened_trace(h) + (directions + 1) * top)

    def spread(self, groups: Groups) -> NDArray[np.float64]:
        """Repeats the number of each group for its weights, [d]."""
        return np.repeat(groups, self.counts.astype(np.int64))
