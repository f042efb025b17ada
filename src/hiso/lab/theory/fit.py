"""Fits and rank correlations, with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Slope:
    """A power law y ∝ x^slope.

    Attributes:
        slope: The exponent.
        error: Its standard error, from the scatter around the line.
    """

    slope: float
    error: float


def fit_slope(x: Sequence[float], y: Sequence[float]) -> Slope:
    """Least squares of log y on log x.

    Raises:
        ValueError: There are fewer than three points, or all have the same x.
    """
    a, b = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    a, b = a - a.mean(), b - b.mean()
    if len(a) < 3 or not a.any():
        raise ValueError("a slope needs three points, not all at one x")
    slope = float(a @ b / (a @ a))
    rest = float(((b - slope * a) ** 2).sum())
    return Slope(slope, float(np.sqrt(rest / (len(a) - 2) / (a @ a))))


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ.

    Attributes:
        rho: The coefficient, in [−1, 1].
        error: Standard error by bootstrap over the weights.
        chance: Standard deviation of ρ between unrelated numbers, 1/√(n − 1).
    """

    rho: float
    error: float
    chance: float

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {"rho": self.rho, "error": self.error, "chance": self.chance}


def rank_correlation(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = 50
) -> RankCorrelation:
    """Spearman's rank correlation of two sequences of equal length.

    The bootstrap resamples pairs of ranks; for many weights this equals the bootstrap of ρ.
    """
    from scipy.stats import rankdata

    a, b = rankdata(first), rankdata(second)
    generator = np.random.Generator(np.random.Philox(seed))
    n = len(a)
    drawn: list[float] = []
    for _ in range(resamples):
        picked = generator.integers(0, n, n)
        drawn.append(_pearson(a[picked], b[picked]))
    return RankCorrelation(_pearson(a, b), float(np.std(drawn)), 1 / np.sqrt(max(1, n - 1)))


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size else 0.0
