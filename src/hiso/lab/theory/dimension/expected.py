"""The expected rounds of a race on least squares: an exact recursion for E x², group by group.

With a_j the whitened gradient of the round's batch, (∇f_j + noise_j)/√h_j, and s_j = Σ_p g_p u_pj/P
for directions of unit variance and fourth moment m₄,

    E s_j²   = ‖a‖²/P + (1 + (m₄ − 2)/P) · E a_j²
    E x_j s_j = E x_j a_j

so x ← x − lr·s/√h gives E x² after the round from E x² before it, exactly while h is fixed. For
HiSo's learned h, h is replaced by its mean, which is an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hiso.core.method.registry import HiSo
from hiso.lab.theory.dimension.spectra import Groups, Spectrum

FOURTH_MOMENT = {"binomial": 2.875, "gaussian": 3.0}
"""E u⁴ for each kind of noise."""


@dataclass(frozen=True)
class Expected:
    """The recursion for one problem.

    Attributes:
        spectrum: λ by group, and the division of the initial loss of 1 among the groups.
        noise: Variance of the gradient's noise per weight and by group, [G].
        directions: P.
        fourth_moment: m₄.
    """

    spectrum: Spectrum
    noise: Groups
    directions: int
    fourth_moment: float = FOURTH_MOMENT["binomial"]

    def rounds(
        self,
        *,
        lr: float,
        h: Groups,
        target: float,
        limit: int,
        learns: HiSo | None = None,
        common: bool = False,
    ) -> int | None:
        """Rounds until the expected loss is `target` times its start; None if not within `limit`.

        Args:
            lr: Learning rate.
            h: Initial preconditioner by group.
            target: Fraction of the initial loss.
            limit: Rounds after which to stop; it also stops when the loss is ten times the start.
            learns: A HiSo whose rule updates h; None for a fixed h.
            common: Use the mean of h over all weights for every weight.
        """
        values, counts, p = self.spectrum.values, self.spectrum.counts, self.directions
        gap = 2 * self.spectrum.shares / (counts * values)  # E (x − x*)² per weight
        own = 1 + (self.fourth_moment - 2) / p
        for done in range(limit + 1):
            loss = 0.5 * float(counts @ (values * gap))
            if loss <= target:
                return done
            if loss > 10:
                return None
            a2 = (values**2 * gap + self.noise) / h
            s2 = float(counts @ a2) / p + own * a2
            gap = gap * (1 - 2 * lr * values / h) + lr**2 * s2 / h
            if learns is not None:
                learnt = (1 - learns.nu) * h + learns.nu * (s2 / h + learns.eps)
                h = np.maximum(learns.floor, learnt)
                if common:
                    h = np.full_like(h, counts @ h / counts.sum())
        return None
