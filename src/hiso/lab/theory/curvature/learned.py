"""What HiSo's h can learn about a weight: its stationary value, its scatter, and the cost.

With shared directions and one local step, g_p = Σ_i a_i u_pi for the whitened gradient
a_i = ĝ_i/√h_i of the round's batches, s_j = (1/P) Σ_p g_p u_pj and dx_j = s_j/√h_j. For u of
variance 1 and fourth moment m₄, independent of each other and of ĝ,

    E s_j² = (‖a‖²/P) · (1 + k ρ_j),    k = P + m₄ − 2,    ρ_j = a_j²/‖a‖²

(the terms p = q give ‖a‖² + (m₄ − 1)·a_j² each, those with p ≠ q give a_j²). The factor in front
is common to all weights. Only k ρ_j differs between weights; because Σ ρ_j = 1, it is of the order
k/d. It is the square of a gradient, as in Adagrad, not a second derivative.

**Stationary value.** h = E dx² = E s²/h gives h̄² = ‖a‖²/P, and with ‖a‖² = ‖ĝ‖²/h̄, h̄³ =
E‖ĝ‖²/P. The stationary value of weight j is h̄·√(1 + k ρ_j).

**Scatter.** Given the scalars, s_j is a sum of P independent terms for every weight, so s_j²
scatters by about its own size, for every weight alike. With h = h̄(1 + δ) the rule h ← (1−ν)h + ν
s²/h is δ ← (1 − 2ν)δ + ν e to first order, with e of mean square q, hence

    sd δ = √(ν q / (4 (1 − ν))),    q = E[2 (Σ g_p²)² + (m₄ − 3) Σ g_p⁴] / (E Σ g_p²)²

For normal g_p of equal variance q = 2(1 + 2/P) + 3(m₄ − 3)/P.

**Cost.** The signal is ½kρ_j and the noise is √(νq)/2: a smaller ν reduces the noise, but needs
about 1/ν rounds. Because sd ρ ∝ 1/d, the rounds needed grow as (d/P)².
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hiso.core.record import Record
from hiso.lab.theory.dimension.expected import FOURTH_MOMENT

Vector = NDArray[np.float64]
M4 = FOURTH_MOMENT["binomial"]


def signal(shares: Vector, directions: int, m4: float = M4) -> Vector:
    """Each weight's stationary h divided by h̄: √(1 + k ρ_j), for shares ρ [d] of E ĝ²."""
    return np.sqrt(1 + (directions + m4 - 2) * shares)


def resting_level(second_moment: float, directions: int) -> float:
    """h̄ = (E‖ĝ‖²/P)^(1/3), above ε and the floor."""
    return float(np.cbrt(second_moment / directions))


def step_noise(directions: int, m4: float = M4) -> float:
    """q for normal scalars of equal variance."""
    return 2 * (1 + 2 / directions) + 3 * (m4 - 3) / directions


def step_noise_of(records: Sequence[Record], m4: float = M4) -> float:
    """q from the scalars of records with one local step each."""
    squares = np.array([float((r.coefficient.astype(float) ** 2).sum()) for r in records])
    fourths = np.array([float((r.coefficient.astype(float) ** 4).sum()) for r in records])
    return float((2 * squares**2 + (m4 - 3) * fourths).mean() / squares.mean() ** 2)


def scatter(nu: float, noise: float) -> float:
    """sd δ: the relative spread of h over weights, for q = `noise`."""
    return float(np.sqrt(nu * noise / (4 * (1 - nu))))


def expected_correlation(
    shares: Vector, target: Vector, *, nu: float, directions: int, noise: float, draws: int = 4
) -> float:
    """The expected Spearman's ρ between the stationary h and `target` [d].

    h is drawn as its stationary value times a gamma variable with mean 1 and the predicted spread.
    """
    from scipy.stats import rankdata

    spread = scatter(nu, noise)
    generator = np.random.Generator(np.random.Philox(0))
    level, of_target = signal(shares, directions), rankdata(target)
    found: list[float] = []
    for _ in range(draws):
        h = level * generator.gamma(spread**-2, spread**2, len(level))
        found.append(np.corrcoef(rankdata(h), of_target)[0, 1])
    return float(np.mean(found))


def rounds_needed(
    shares: Vector, target: Vector, correlation: float, *, directions: int
) -> float | None:
    """Approximate stationary rounds, 1/ν, needed for this Spearman correlation with `target`.

    None if even a scatter of 1e-9 is not enough, because E ĝ² itself has a lower correlation.
    """
    noise, low, high = step_noise(directions), np.log(1e-18), np.log(0.5)

    def found(log_nu: float) -> float:
        nu = float(np.exp(log_nu))
        return expected_correlation(
            shares, target, nu=nu, directions=directions, noise=noise, draws=2
        )

    if found(low) < correlation:
        return None
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) >= correlation else (low, middle)
    return float(np.exp(-low))
