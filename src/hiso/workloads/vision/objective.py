"""The loss of a network on batches of images, and its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.measure.outcome import Outcome
from hiso.errors import SettingsError
from hiso.workloads.vision.images import Image

_CHUNK = 512


class ImageBatch(Protocol):
    """The images on which one client measures its loss in one local step."""

    @property
    def examples(self) -> Sequence[Image]:
        """The images."""
        ...


class ImageObjective:
    """Evaluates a network on batches: `objective(batches)`.

    The loss is the cross-entropy of the right label. Logits are first converted to float32, for any
    dtype of the network.

    Attributes:
        at_points: None: a network on images measures one point per pass.
    """

    at_points = None

    def __init__(self, module: nn.Module, *, joint: bool = True) -> None:
        """Args: the network; whether batches share one forward pass, which changes the rounding."""
        self._module, self._joint = module, joint

    @torch.inference_mode()
    def __call__(self, batches: Sequence[ImageBatch]) -> list[Outcome]:
        """The outcome of each batch."""
        groups = [batches] if self._joint and batches else [[batch] for batch in batches]
        outcomes: list[Outcome] = []
        for group in groups:
            examples = [e for batch in group for e in batch.examples]
            together = Outcome.of_scores(*self._scores(examples))
            outcomes += together.split([len(batch.examples) for batch in group])
        return outcomes

    def loss(self, batch: ImageBatch) -> Tensor:
        """The mean loss of one batch, a scalar with a gradient."""
        scores, labels = self._scores(batch.examples)
        return nn.functional.cross_entropy(scores, labels, reduction="none").mean()

    @torch.inference_mode()
    def evaluate(
        self,
        examples: Sequence[Image],
        advance: Callable[[int], None] | None = None,
        biases: NDArray[np.float64] | None = None,
    ) -> dict[str, float]:
        """The metrics "loss" and "accuracy" over all `examples`, with `biases` added to the scores.

        Raises:
            SettingsError: There are no examples.
        """
        if not examples:
            raise SettingsError("cannot evaluate 0 examples: 1 or more are needed.")
        loss, hits = 0.0, 0
        for start in range(0, len(examples), _CHUNK):
            part = examples[start : start + _CHUNK]
            outcome = Outcome.of_scores(*self._scores(part)).shifted(biases)
            loss += float(outcome.losses.sum())
            hits += int((outcome.predictions == outcome.labels).sum())
            if advance is not None:
                advance(len(part))
        return {"loss": loss / len(examples), "accuracy": hits / len(examples)}

    def _scores(self, examples: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, C] of images, and their labels [B]."""
        like = next(self._module.parameters())
        pixels = torch.stack([e.pixels for e in examples]).to(like.device, like.dtype)
        labels = torch.tensor([e.label for e in examples], device=like.device)
        return self._module(pixels).float(), labels
