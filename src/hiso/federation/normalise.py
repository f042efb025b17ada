"""One number in place of HiSo's diagonal: its mean, which the server has for free."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from hiso.core.record import Record

FLOOR = 0.25
EPS = 1e-8
"""HiSo's own defaults."""


def mean_curvature(records: Iterable[Record], nu: float, start: float = 1.0) -> float:
    """The mean h̄ of HiSo's diagonal after `records`, from their coefficients alone.

        h̄ ← max(floor, (1−ν)·h̄ + ν·(Σ_p c_p² / h̄² + ε))

    c are the coefficients of the first local step, measured along u. HiSo measures along u/√h,
    and with the same h for all weights its mean step squared is (1/d) Σ_j dx_j² = Σ_p (c_p/√h)²/h,
    up to the correlation of two directions, of the order 1/√d (HiSo, Eq. 12, averaged over
    weights, and the average given to each before the next round).

    Args:
        records: Those that follow.
        nu: Smoothing ν.
        start: h̄ before them.
    """
    h = start
    for record in records:
        c = record.coefficient[record.step == 0].astype(np.float64)
        h = max(FLOOR, (1 - nu) * h + nu * (math.fsum(c * c) / (h * h) + EPS))
    return h
