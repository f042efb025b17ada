"""scikit-learn's digits, as a small data set in which images are identified by row number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hiso.core.keys import permutation
from hiso.data.batches import Batch, Shard
from hiso.workloads.vision.images import Image, load_data_set
from hiso.workloads.vision.models import make_network


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images float32 [N, 1, 8, 8] and labels int64 [N] for training, and the same for the test."""
    splits = load_data_set("digits")
    return *_tensors(splits.train), *_tensors(splits.test)


def _tensors(images: Sequence[Image]) -> tuple[Tensor, Tensor]:
    pixels = torch.stack([image.pixels for image in images])
    return pixels, torch.tensor([image.label for image in images])


def network(seed: int) -> nn.Module:
    """hiso's small convolutional network: 1,898 weights, a function of the seed."""
    return make_network("cnn", (1, 8, 8), 10, seed)


def shards(images: int, clients: int, batch_size: int, seed: int) -> list[Shard[int]]:
    """Rows of images, divided at random into parts of nearly equal size."""
    dealt = np.array_split(permutation(seed, "deal", size=images), clients)
    return [Shard(i, part.tolist(), batch_size, seed) for i, part in enumerate(dealt)]


class Losses:
    """Mean cross-entropy of batches of rows, computed in one pass."""

    def __init__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self._module, self._inputs, self._labels = module, inputs, labels

    @torch.inference_mode()
    def __call__(self, batches: Sequence[Batch[int]]) -> list[float]:
        """See `hiso.ring.passes.Losses`."""
        rows = [row for batch in batches for row in batch.examples]
        logits = self._module(self._inputs[rows])
        each = nn.functional.cross_entropy(logits, self._labels[rows], reduction="none")
        parts = each.split([len(batch.examples) for batch in batches])
        return [float(part.double().mean()) for part in parts]


@torch.inference_mode()
def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Fraction of the images for which the module predicts the right label."""
    return float((module(inputs).argmax(1) == labels).double().mean())
