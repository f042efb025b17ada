"""What one batch's forward passes say along the directions of a local step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiso.core.outcome import Outcome

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Local:
    """A quadratic model of a batch's mean loss within the span of P directions.

    Attributes:
        gradient: g, the mean loss's derivative along each direction, float64 [P].
        gauss_newton: A, symmetric, A ≥ 0, float64 [P, P]: the curvature that the model's own
            probabilities give.
        fisher: F likewise, the mean of sᵀs over examples (or tokens), where s [P] is the
            derivative of one's loss: the empirical Fisher matrix. On average it is A where the
            probabilities are true. Without label scores A is not known, and F stands for it.
        parts: How many independent observations an example is: 1 with scores, its tokens without
            (their mean over the batch).
    """

    gradient: Floats
    gauss_newton: Floats
    fisher: Floats
    parts: float

    @property
    def mean_curvature(self) -> float:
        """max(tr A, tr F) / P.

        A model that is sure of wrong labels has A near 0, until it has learned to doubt; F is large
        there. A step that trusts A alone is far too long.
        """
        most = max(float(np.trace(self.gauss_newton)), float(np.trace(self.fisher)))
        return most / len(self.gradient)

    @property
    def gradient_curvature(self) -> float:
        """max(gᵀAg, gᵀFg) / gᵀg: the curvature along Σ_p g_p z_p per unit of g; 0 where g is 0."""
        g = self.gradient
        most = max(float(g @ matrix @ g) for matrix in (self.gauss_newton, self.fisher))
        size = float(g @ g)
        return most / size if size else 0.0

    @classmethod
    def of(
        cls, base: Outcome, ahead: Sequence[Outcome], behind: Sequence[Outcome], mu: float
    ) -> Local:
        """From the outcomes of one batch, by differences in float64.

        Args:
            base: At w.
            ahead: At w + μz_p, for each of the P directions.
            behind: At w − μz_p likewise, for central differences; empty for forward ones, which
                are taken from `base`.
            mu: μ.

        Raises:
            SettingsError: An outcome has neither scores nor losses of tokens.
        """
        low = behind or [base] * len(ahead)
        step = 2 * mu if behind else mu
        pairs = list(zip(ahead, low, strict=True))
        if base.tokens is not None:
            slopes = [(_tokens(high) - _tokens(below)) / step for high, below in pairs]
            return cls.of_tokens(np.stack(slopes, 1), len(base.losses))
        scores, labels = base.labelled()
        at = scores.astype(np.float64)
        spread = np.exp(at - at.max(1, keepdims=True))
        jacobian = [(_scores(high) - _scores(below)) / step for high, below in pairs]
        return cls.of_scores(np.stack(jacobian, 1), spread / spread.sum(1, keepdims=True), labels)

    @classmethod
    def of_scores(cls, jacobian: Floats, probabilities: Floats, labels: NDArray[np.int64]) -> Local:
        """Gauss–Newton, for the cross-entropy of B examples with C labels.

            g_p  = mean_i J_ip · (p_i − onehot(y_i))
            A_pq = mean_i J_ipᵀ (diag p_i − p_i p_iᵀ) J_iq
            F_pq = mean_i s_ip s_iq,   s_ip = J_ip · (p_i − onehot(y_i))

        A is computed as KᵀK, K[(i, c), p] = √(p_ic / B) · (J_ipc − Σ_c' p_ic' J_ipc').

        Args:
            jacobian: J[i, p] = derivative of example i's scores along direction p, [B, P, C].
            probabilities: p_i = softmax of its scores, [B, C].
            labels: Number of its right label y_i, int64 [B].
        """
        size, directions, _ = jacobian.shape
        residual = probabilities.copy()
        residual[np.arange(size), labels] -= 1
        slopes = np.einsum("bpc,bc->bp", jacobian, residual)
        mean = np.einsum("bpc,bc->bp", jacobian, probabilities)
        k = (jacobian - mean[:, :, None]) * np.sqrt(probabilities / size)[:, None, :]
        flat = k.transpose(0, 2, 1).reshape(-1, directions)
        return cls(slopes.mean(0), flat.T @ flat, slopes.T @ slopes / size, 1.0)

    @classmethod
    def of_tokens(cls, slopes: Floats, examples: int) -> Local:
        """Empirical Fisher, for −log probabilities of N tokens: g_p = mean_j D_jp, F = DᵀD/N.

        Args:
            slopes: D[j, p] = derivative of token j's loss along direction p, [N, P].
            examples: B, which the tokens are part of.
        """
        fisher = slopes.T @ slopes / len(slopes)
        return cls(slopes.mean(0), fisher, fisher, len(slopes) / examples)


def _scores(outcome: Outcome) -> Floats:
    return outcome.labelled()[0].astype(np.float64)


def _tokens(outcome: Outcome) -> Floats:
    assert outcome.tokens is not None
    return outcome.tokens
