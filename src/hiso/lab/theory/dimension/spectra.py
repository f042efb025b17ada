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
    """Eigenvalues of a diagonal Hessian: a head of single ones, and a tail of equal ones.

    Attributes:
        values: Eigenvalue λ of each group, float64 [G].
        counts: Eigenvalues in each group, float64 [G]: 1 for all but the last.
        shares: Part of the initial loss that lies in each group, float64 [G], sum 1.
    """

    values: Groups
    counts: Groups
    shares: Groups

    @classmethod
    def headed(
        cls, d: int, *, head: int, condition: float, tail_trace: float, tail_share: float
    ) -> Spectrum:
        """`head` eigenvalues from 1 down to 1/condition, evenly on a logarithmic scale, and a tail.

        The d − head eigenvalues of the tail are equal and add up to `tail_trace`, whatever d is:
        so the trace, and with the largest eigenvalue 1 the effective rank κ, do not depend on d.

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
        """Σ λ, which the paper bounds by Lκ."""
        return float(self.counts @ self.values)

    @property
    def effective_rank(self) -> float:
        """κ = trace / largest eigenvalue."""
        return self.trace / float(self.values.max())

    def whitened_trace(self, h: Groups) -> float:
        """ζ = Tr(H^(-1/2) Σ H^(-1/2)) = Σ λ/h (HiSo, theorem 1), for h by group."""
        return float(self.counts @ (self.values / h))

    def step_unit(self, h: Groups, directions: int) -> float:
        """P / (ζ + (P + 1)·max λ/h): learning rates are multiples of it.

        With u of unit variance, E dx·∇²f·dx is at most this denominator times gᵀH⁻¹g / P, so that
        the unit maximises a bound of one step's expected progress; above twice the unit steps
        make the loss larger.
        """
        top = float((self.values / h).max())
        return directions / (self.whitened_trace(h) + (directions + 1) * top)

    def spread(self, groups: Groups) -> NDArray[np.float64]:
        """A number per group as one per weight, [d]."""
        return np.repeat(groups, self.counts.astype(np.int64))
