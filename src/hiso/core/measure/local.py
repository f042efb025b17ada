"""A quadratic model of one batch's loss along the directions of a local step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.outcome import Outcome

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Local:
    """A quadratic model of a batch's mean loss within the span of P directions.

    If label biases are also tuned, C − 1 more columns follow the columns of the directions, so [P]
    below is [P + C − 1].

    Attributes:
        gradient: g, the mean loss's derivative along each direction, float64 [P].
        gauss_newton: A, symmetric, A ≥ 0, float64 [P, P]: the curvature computed from the model's
            own probabilities.
        fisher: F, the empirical Fisher matrix, float64 [P, P]: the mean of sᵀs over examples (or
            tokens), where s [P] is the derivative of the loss of one example. If the probabilities
            are correct, F equals A on average. Without label scores A is not known, and F is used
            instead.
        examples: B, the examples of the batch.
        parts: Number of independent observations per example: 1 with scores; without scores, the
            mean number of tokens.
        directions: P.
        scale: s: one unit of a bias's column is a change of b by s along a contrast.
    """

    gradient: Floats
    gauss_newton: Floats
    fisher: Floats
    examples: int
    parts: float
    directions: int
    scale: float = 1.0

    @property
    def mean_curvature(self) -> float:
        """max(tr A, tr F) / P, over the directions only.

        If a model is confident of wrong labels, A is near 0 until it becomes less confident, but F
        is large. A step computed from A alone would be far too long.
        """
        mine = self.without_biases()
        most = max(float(np.trace(mine.gauss_newton)), float(np.trace(mine.fisher)))
        return most / self.directions

    @property
    def gradient_curvature(self) -> float:
        """max(gᵀAg, gᵀFg) / gᵀg: the curvature along Σ_p g_p z_p per unit of g; 0 if g is 0."""
        g = self.gradient
        most = max(float(g @ matrix @ g) for matrix in (self.gauss_newton, self.fisher))
        size = float(g @ g)
        return most / size if size else 0.0

    def without_biases(self) -> Local:
        """The quadratic model along the P directions only."""
        p = self.directions
        matrices = self.gauss_newton[:p, :p], self.fisher[:p, :p]
        return replace(
            self, gradient=self.gradient[:p], gauss_newton=matrices[0], fisher=matrices[1]
        )

    @classmethod
    def of(
        cls,
        base: Outcome,
        ahead: Sequence[Outcome],
        behind: Sequence[Outcome],
        mu: float,
        biases: bool = False,
    ) -> Local:
        """Computes the quadratic model from the outcomes of one batch, by differences in float64.

        The column of a bias belongs to a contrast q_j of the labels: the scores' derivative along
        this column is s·q_j for every example. s is three times the root mean square of the
        directions' derivatives along the contrasts, or 1 if this is 0.

        Args:
            base: The outcome at w.
            ahead: The outcomes at w + μz_p, for each of the P directions.
            behind: The outcomes at w − μz_p, for central differences; empty for forward
                differences, which use `base`.
            mu: μ.
            biases: Whether label biases are also tuned.

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
        jacobian = np.stack([(_scores(high) - _scores(below)) / step for high, below in pairs], 1)
        probabilities = spread / spread.sum(1, keepdims=True)
        if not biases:
            return cls.of_scores(jacobian, probabilities, labels)
        q = contrasts(at.shape[1])
        scale = 3 * float(np.sqrt(np.mean((jacobian @ q) ** 2))) or 1.0
        columns = np.broadcast_to(scale * q.T, (len(at), *q.T.shape))
        local = cls.of_scores(np.concatenate([jacobian, columns], 1), probabilities, labels)
        return replace(local, directions=jacobian.shape[1], scale=scale)

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
            labels: Number of the right label y_i, int64 [B].
        """
        size, directions, _ = jacobian.shape
        residual = probabilities.copy()
        residual[np.arange(size), labels] -= 1
        slopes = np.einsum("bpc,bc->bp", jacobian, residual)
        mean = np.einsum("bpc,bc->bp", jacobian, probabilities)
        k = (jacobian - mean[:, :, None]) * np.sqrt(probabilities / size)[:, None, :]
        flat = k.transpose(0, 2, 1).reshape(-1, directions)
        fisher = slopes.T @ slopes / size
        return cls(slopes.mean(0), flat.T @ flat, fisher, size, 1.0, directions)

    @classmethod
    def of_tokens(cls, slopes: Floats, examples: int) -> Local:
        """Empirical Fisher matrix, for −log probabilities of N tokens: g_p = mean_j D_jp, F =
        DᵀD/N.

        Args:
            slopes: D[j, p] = derivative of token j's loss along direction p, [N, P].
            examples: B, the number of examples to which the tokens belong.
        """
        fisher = slopes.T @ slopes / len(slopes)
        parts = len(slopes) / examples
        return cls(slopes.mean(0), fisher, fisher, examples, parts, slopes.shape[1])


@cache
def contrasts(labels: int) -> Floats:
    """Q, float64 [C, C − 1]: orthonormal columns, each of which sums to 0 (Helmert's basis).

    q_j = (1, …, 1, −j, 0, …, 0) / √(j·(j + 1)), with j ones, for j = 1 … C − 1.
    """
    q = np.zeros((labels, labels - 1))
    for j in range(1, labels):
        q[:j, j - 1] = 1 / np.sqrt(j * (j + 1))
        q[j, j - 1] = -j / np.sqrt(j * (j + 1))
    return q


def _scores(outcome: Outcome) -> Floats:
    return outcome.labelled()[0].astype(np.float64)


def _tokens(outcome: Outcome) -> Floats:
    assert outcome.tokens is not None
    return outcome.tokens
