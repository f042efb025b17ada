"""What one batch's label scores say along the directions of a local step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hiso.core.outcome import Outcome


@dataclass(frozen=True, eq=False)
class Local:
    """The scores f of B examples and C labels, and how they change along P directions.

    Attributes:
        jacobian: J[i, p] = the derivative of f_i along direction p, float64 [B, P, C].
        probabilities: softmax(f_i), float64 [B, C].
        labels: Number of each example's right label, int64 [B].
    """

    jacobian: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    labels: NDArray[np.int64]

    @classmethod
    def of(
        cls, base: Outcome, ahead: Sequence[Outcome], behind: Sequence[Outcome], mu: float
    ) -> Local:
        """Differences of scores, in float64.

        Args:
            base: At w.
            ahead: At w + μz_p, for each of the P directions.
            behind: At w − μz_p likewise, for central differences; empty for forward ones, which
                are taken from `base`.
            mu: μ.

        Raises:
            SettingsError: An outcome has no scores.
        """
        scores, labels = base.labelled()
        at = scores.astype(np.float64)
        low = [_scores(outcome) for outcome in behind] or [at] * len(ahead)
        step = 2 * mu if behind else mu
        jacobian = [(_scores(high) - below) / step for high, below in zip(ahead, low, strict=True)]
        spread = np.exp(at - at.max(1, keepdims=True))
        return cls(np.stack(jacobian, 1), spread / spread.sum(1, keepdims=True), labels)

    @cached_property
    def gradient(self) -> NDArray[np.float64]:
        """g_p = mean_i J_ip · (softmax(f_i) − onehot(y_i)): the mean loss's derivative, [P]."""
        residual = self.probabilities.copy()
        residual[np.arange(len(self.labels)), self.labels] -= 1
        return np.einsum("bpc,bc->p", self.jacobian, residual) / len(self.labels)

    @cached_property
    def gauss_newton(self) -> NDArray[np.float64]:
        """A_pq = mean_i J_ipᵀ (diag p_i − p_i p_iᵀ) J_iq, symmetric, A ≥ 0, [P, P].

        As a product of a matrix with its own transpose, from the scores' deviations from their
        mean under p: A = KᵀK with K[(i, c), p] = √(p_ic / B) · (J_ipc − Σ_c' p_ic' J_ipc').
        """
        mean = np.einsum("bpc,bc->bp", self.jacobian, self.probabilities)
        weight = np.sqrt(self.probabilities / len(self.labels))
        k = (self.jacobian - mean[:, :, None]) * weight[:, None, :]
        flat = k.transpose(0, 2, 1).reshape(-1, k.shape[1])
        return flat.T @ flat


def _scores(outcome: Outcome) -> NDArray[np.float64]:
    return outcome.labelled()[0].astype(np.float64)
