"""The result of evaluating a model on a batch, example by example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.errors import SettingsError


@dataclass(frozen=True, eq=False)
class Outcome:
    """Losses of the B examples of a batch and, if the task has labels, their scores.

    Attributes:
        losses: Loss of each example, summed over its tokens if the loss is per token, float64 [B].
        weights: Weight of each example in the mean, float64 [B]: 1, or its number of tokens.
        scores: Scores of the C labels, float32 [B, C]; their softmax gives the probabilities. None
            if there are no labels.
        labels: Number of each example's right label, int64 [B]; None without scores.
        tokens: −log probability of each token, example after example, float64 [Σ weights]; None if
            a loss is not a sum over tokens.
    """

    losses: NDArray[np.float64]
    weights: NDArray[np.float64]
    scores: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    tokens: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """Σ losses / Σ weights, summed exactly and rounded to float64."""
        return math.fsum(self.losses.tolist()) / math.fsum(self.weights.tolist())

    @property
    def predictions(self) -> NDArray[np.int64]:
        """Number of the label with the highest score, int64 [B]; of equal scores, the first.

        Raises:
            SettingsError: There are no scores.
        """
        return self.labelled()[0].argmax(1)

    def labelled(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and right labels.

        Raises:
            SettingsError: There are none.
        """
        if self.scores is None or self.labels is None:
            raise SettingsError(
                "label scores are needed, and the loss gives none: choose a task with labels, or "
                "let the loss function return a pair of scores [B, C] and labels [B]"
            )
        return self.scores, self.labels

    @classmethod
    def of(cls, value: Any) -> Outcome:
        """Converts the result of a user's own loss function for a batch.

        Args:
            value: A mean loss; losses of the examples [B]; a pair of scores [B, C] and labels [B],
                from which the cross-entropy is taken; or an `Outcome`. Tensors, arrays or lists.

        Raises:
            SettingsError: The value is something else.
        """
        if isinstance(value, Outcome):
            return value
        if isinstance(value, tuple):
            return cls.of_scores(*value)
        try:
            losses = _array(value, np.float64)
        except (TypeError, ValueError) as error:
            raise SettingsError(
                f"a loss function returned {type(value).__name__}: it must return a mean loss, "
                "losses [B], or scores [B, C] and labels [B]"
            ) from error
        if losses.ndim > 1 or not losses.size:
            raise SettingsError(
                f"a loss function returned an array {list(losses.shape)}: losses are [B], and "
                "scores come with their labels, as a pair"
            )
        return cls(losses.reshape(-1), np.ones(losses.size))

    @classmethod
    def of_scores(cls, scores: Any, labels: Any) -> Outcome:
        """Cross-entropies −log softmax(scores)[label], each computed by torch in float32.

        Raises:
            SettingsError: The shapes are not [B, C] and [B], or a label is not in [0, C).
        """
        import torch  # imported only when needed: a server has no torch

        at = torch.as_tensor(scores).detach().float()
        right = torch.as_tensor(labels).detach().to(at.device).long()
        if at.ndim != 2 or right.shape != at.shape[:1] or not right.numel():
            raise SettingsError(
                f"scores {list(at.shape)} and labels {list(right.shape)} must be [B, C] and [B]"
            )
        if not bool(((right >= 0) & (right < at.shape[1])).all()):
            raise SettingsError(f"labels must lie in [0, {at.shape[1]}), the columns of scores")
        losses = torch.nn.functional.cross_entropy(at, right, reduction="none")
        found = losses.double().cpu().numpy(), at.cpu().numpy(), right.cpu().numpy()
        return cls(found[0], np.ones(len(found[0])), found[1], found[2])

    def shifted(self, biases: NDArray[np.float64] | None) -> Outcome:
        """The outcome with scores f + b, for label biases b, float64 [C]; None for no biases.

        The losses are −log softmax(f + b)[label] in float64, and the scores rounded to float32.

        Raises:
            SettingsError: There are no scores.
        """
        if biases is None:
            return self
        scores, labels = self.labelled()
        at = scores.astype(np.float64) + biases
        at -= at.max(1, keepdims=True)
        losses = np.log(np.exp(at).sum(1)) - at[np.arange(len(at)), labels]
        moved = (scores.astype(np.float64) + biases).astype(np.float32)
        return Outcome(losses, self.weights, moved, labels)

    def split(self, sizes: list[int]) -> list[Outcome]:
        """Splits an outcome of batches that were measured together, by their sizes."""
        ends = np.cumsum(sizes)[:-1]
        counts = [int(part.sum()) for part in np.split(self.weights, ends)]
        by_example = (self.losses, self.weights, self.scores, self.labels)
        columns = [_split(column, ends, len(sizes)) for column in by_example]
        columns.append(_split(self.tokens, np.cumsum(counts)[:-1], len(sizes)))
        return [Outcome(*parts) for parts in zip(*columns, strict=True)]  # pyright: ignore[reportArgumentType]


def log_shares(labels: Sequence[int], count: int) -> NDArray[np.float64]:
    """log of (n_c + 1) / (n + C) for each of C labels, where n_c of n examples have label c.

    Args:
        labels: Numbers of the examples' labels.
        count: C.
    """
    found = np.bincount(np.asarray(labels, np.int64), minlength=count)
    return np.log((found + 1) / (len(labels) + count))


def _split(column: NDArray[Any] | None, ends: NDArray[np.int64], count: int) -> list[Any]:
    return [None] * count if column is None else np.split(column, ends)


def _array(value: Any, dtype: type[np.float64]) -> NDArray[np.float64]:
    if value is None:  # NumPy would convert None to NaN
        raise TypeError("nothing was returned")
    if hasattr(value, "detach"):  # a tensor of any dtype and device
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype)
