"""One number in place of HiSo's diagonal: its mean, which the server has for free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hiso.core.method.registry import HiSo
from hiso.core.record import Record


@dataclass(frozen=True)
class MeanDiagonal:
    """The mean h̄ of HiSo's diagonal, from the coefficients of the log alone.

        h̄ ← max(floor, (1−ν)·h̄ + ν·(Σ_p c_p² / h̄² + ε))

    c are the coefficients of the first local step, measured along u. HiSo measures along u/√h,
    and with the same h for all weights its mean step squared is (1/d) Σ_j dx_j² = Σ_p (c_p/√h)²/h,
    up to the correlation of two directions, of the order 1/√d (HiSo, Eq. 12, averaged over
    weights, and the average given to each before the next round). Floor and ε are HiSo's defaults.

    A server that has it divides the learning rate by h̄ and μ by √h̄: HiSo with one number, on a
    method without a diagonal. What it divides is logged as a changed hyper-parameter, so replicas
    need not know of it.

    Attributes:
        nu: Smoothing ν.
    """

    nu: float
    start: ClassVar[float] = 1.0

    def remember(self, h: float, record: Record) -> float:
        """h̄ after a record."""
        c = record.coefficient[record.step == 0].astype(np.float64)
        learned = math.fsum(c * c) / (h * h) + HiSo.eps
        return max(HiSo.floor, (1 - self.nu) * h + self.nu * learned)

    def hyper(self, h: float, hyper: Mapping[str, float]) -> dict[str, float]:
        """Hyper-parameters to put in force, with lr divided by h̄."""
        return {**hyper, "lr": hyper["lr"] / h}

    def mu(self, h: float, mu: float) -> float:
        """μ to measure with."""
        return mu / math.sqrt(h)
