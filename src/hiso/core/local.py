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
        curvature: A, symmetric, A ≥ 0, float64 [P, P]: the Gauss–Newton matrix, or without label
            scores the empirical Fisher matrix.
        undecided: tr(A)/P if all labels were equally probable: what the curvature grows to where
            a model is sure of wrong labels, and A nearly 0. Without scores, tr(A)/P itself.
        parts: How many independent observations an example is: 1 with scores, its tokens without
            (their mean over the batch).
    """

    gradient: Floats
    curvature: Floats
    undecided: float
    parts: float

    @property
    def mean_curvature(self) -> float:
        """tr(A)/P."""
        return float(np.trace(self.curvature)) / len(self.gradient)

    @property
    def doubt(self) -> float:
        """How many times tr(A)/P the curvature of an undecided model is; at least 1."""
        mean = self.mean_curvature
        return max(1.0, self.undecided / mean) if mean else 1.0

    @property
    def gradient_curvature(self) -> float:
        """gᵀAg / gᵀg: the curvature along Σ_p g_p z_p, for z_p of length 1; 0 where g is 0."""
        g = self.gradient
        size = float(g @ g)
        return float(g @ self.curvature @ g) / size if size else 0.0

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

        A is computed as KᵀK, K[(i, c), p] = √(p_ic / B) · (J_ipc − Σ_c' p_ic' J_ipc').

        Args:
            jacobian: J[i, p] = derivative of example i's scores along direction p, [B, P, C].
            probabilities: p_i = softmax of its scores, [B, C].
            labels: Number of its right label y_i, int64 [B].
        """
        size, directions, _ = jacobian.shape
        residual = probabilities.copy()
        residual[np.arange(size), labels] -= 1
        gradient = np.einsum("bpc,bc->p", jacobian, residual) / size
        mean = np.einsum("bpc,bc->bp", jacobian, probabilities)
        k = (jacobian - mean[:, :, None]) * np.sqrt(probabilities / size)[:, None, :]
        flat = k.transpose(0, 2, 1).reshape(-1, directions)
        return cls(gradient, flat.T @ flat, float(jacobian.var(2).mean()), 1.0)

    @classmethod
    def of_tokens(cls, slopes: Floats, examples: int) -> Local:
        """Empirical Fisher, for −log probabilities of N tokens: g_p = mean_j D_jp, A = DᵀD/N.

        Args:
            slopes: D[j, p] = derivative of token j's loss along direction p, [N, P].
            examples: B, which the tokens are part of.
        """
        tokens, directions = slopes.shape
        fisher = slopes.T @ slopes / tokens
        undecided = float(np.trace(fisher)) / directions
        return cls(slopes.mean(0), fisher, undecided, tokens / examples)


def _scores(outcome: Outcome) -> Floats:
    return outcome.labelled()[0].astype(np.float64)


def _tokens(outcome: Outcome) -> Floats:
    assert outcome.tokens is not None
    return outcome.tokens
