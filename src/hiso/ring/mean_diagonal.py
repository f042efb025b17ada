"""The mean of HiSo's diagonal as one number, which the server computes from the log."""

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
    """The mean h̄ of HiSo's diagonal, computed from the coefficients of the log alone.

        h̄ ← max(floor, (1−ν)·h̄ + ν·(Σ_p c_p² / h̄² + ε))

    c are the coefficients of the first local step, measured along u. HiSo measures along u/√h.
    With the same h for all weights, HiSo's mean squared step is (1/d) Σ_j dx_j² = Σ_p (c_p/√h)²/h,
    up to the correlation of two directions, which is of the order 1/√d. (This is HiSo, Eq. 12,
    averaged over weights, if after each round every weight gets the average.) Floor and ε are
    HiSo's defaults.

    The server divides the learning rate by h̄ and μ by √h̄. This is HiSo with one number, for a
    method without a diagonal. The divided learning rate is logged as a changed hyper-parameter, so
    replicas need no h̄.

    Attributes:
        nu: Update rate ν.
    """

    nu: float
    start: ClassVar[float] = 1.0

    def remember(self, h: float, record: Record) -> float:
        """h̄ after a record."""
        c = record.coefficient[record.step == 0].astype(np.float64)
        learned = math.fsum(c * c) / (h * h) + HiSo.eps
        return max(HiSo.floor, (1 - self.nu) * h + self.nu * learned)

    def hyper(self, h: float, hyper: Mapping[str, float]) -> dict[str, float]:
        """The hyper-parameters with lr divided by h̄."""
        return {**hyper, "lr": hyper["lr"] / h}

    def mu(self, h: float, mu: float) -> float:
        """The μ for measuring: μ / √h̄."""
        return mu / math.sqrt(h)
