"""The loss of a network on batches of images, and its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hiso.errors import SettingsError
from hiso.vision.data import Image

_CHUNK = 512


class ImageBatch(Protocol):
    """What one client measures its loss on in one local step."""

    @property
    def examples(self) -> Sequence[Image]:
        """The images."""
        ...


class ImageObjective:
    """Mean cross-entropies of batches: `objective(batches)`.

    Logits become float32 before the loss, whatever the network computes in.
    """

    def __init__(self, module: nn.Module, *, joint: bool = True) -> None:
        """Args: the network; whether batches share one forward pass, in other roundings."""
        self._module, self._joint = module, joint

    @torch.inference_mode()
    def __call__(self, batches: Sequence[ImageBatch]) -> list[float]:
        """The mean loss of each batch."""
        groups = [batches] if self._joint and batches else [[batch] for batch in batches]
        losses: list[float] = []
        for group in groups:
            examples = [e for batch in group for e in batch.examples]
            each, _ = self._outcomes(examples)
            parts = each.double().cpu().split([len(batch.examples) for batch in group])
            losses += [float(part.mean()) for part in parts]
        return losses

    def loss(self, batch: ImageBatch) -> Tensor:
        """The mean loss of one batch, a scalar through which gradients flow."""
        return self._outcomes(batch.examples)[0].mean()

    @torch.inference_mode()
    def evaluate(
        self, examples: Sequence[Image], advance: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Keys "loss" and "accuracy", over all `examples`.

        Raises:
            SettingsError: There are no examples.
        """
        if not examples:
            raise SettingsError("cannot evaluate 0 examples: 1 or more are needed.")
        loss, hits = 0.0, 0
        for start in range(0, len(examples), _CHUNK):
            part = examples[start : start + _CHUNK]
            each, right = self._outcomes(part)
            loss, hits = loss + float(each.double().sum()), hits + int(right.sum())
            if advance is not None:
                advance(len(part))
        return {"loss": loss / len(examples), "accuracy": hits / len(examples)}

    def _outcomes(self, examples: Sequence[Image]) -> tuple[Tensor, Tensor]:
        """Loss [B] float32 of each image, and whether its label is the likeliest [B]."""
        like = next(self._module.parameters())
        pixels = torch.stack([e.pixels for e in examples]).to(like.device, like.dtype)
        labels = torch.tensor([e.label for e in examples], device=like.device)
        logits = self._module(pixels).float()
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return losses, logits.argmax(1) == labels
