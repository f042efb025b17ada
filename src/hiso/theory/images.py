"""A network and data small enough for exact second derivatives: scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiso.core.keys import choose, permutation, raw_bits

Rows = list[int]


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images, float32 [N, 1, 8, 8] in [0, 1], and their labels, int64 [N].

    Returns:
        inputs, labels, test inputs, test labels; a fifth of the 1,797 images is for testing.
    """
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    inputs = torch.from_numpy(loaded.images / 16).float()[:, None]
    labels = torch.from_numpy(loaded.target).long()
    order = torch.from_numpy(permutation(0, "split", size=len(labels)))
    fifth = len(labels) // 5
    test, train = order[:fifth], order[fifth:]
    return inputs[train], labels[train], inputs[test], labels[test]


def network(seed: int) -> nn.Module:
    """Two convolutions of 8 and 16 channels, each with ReLU and a 2×2 maximum, and a linear layer.

    1,898 weights, uniform in ±1/√(fan-in), a function of the seed.
    """
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    for number, layer in enumerate(module):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5
            for kind, parameter in enumerate(layer.parameters()):
                bits = raw_bits(seed, "network", (number, kind), parameter.numel())
                uniform = torch.from_numpy(bits / 2.0**64).view(parameter.shape)
                parameter.data = ((2 * uniform - 1) * bound).float()
    return module


@dataclass(frozen=True)
class Shard:
    """A client's rows of the training images.

    Attributes:
        client: Its index.
        rows: Its rows.
        batch_size: Images of a batch.
        seed: Key of the batches.
    """

    client: int
    rows: Rows
    batch_size: int
    seed: int

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(self.rows)

    def batch(self, round: int, step: int) -> Rows:
        """Rows of a local step's batch."""
        count = min(self.batch_size, len(self.rows))
        coordinates = (self.client, round, step)
        picked = choose(self.seed, "batch", *coordinates, size=len(self.rows), count=count)
        return [self.rows[i] for i in picked]


def shards(images: int, clients: int, batch_size: int, seed: int) -> list[Shard]:
    """Deals the images out at random, in parts as equal as can be."""
    dealt = np.array_split(permutation(seed, "deal", size=images), clients)
    return [Shard(i, part.tolist(), batch_size, seed) for i, part in enumerate(dealt)]


class Losses:
    """Mean cross-entropy of batches of rows, all in one pass."""

    def __init__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        self._module, self._inputs, self._labels = module, inputs, labels

    @torch.inference_mode()
    def __call__(self, batches: Sequence[Rows]) -> list[float]:
        """See `hiso.federation.measure.Losses`."""
        rows = [row for batch in batches for row in batch]
        logits = self._module(self._inputs[rows])
        each = nn.functional.cross_entropy(logits, self._labels[rows], reduction="none")
        return [float(part.double().mean()) for part in each.split([len(b) for b in batches])]


@torch.inference_mode()
def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Part of the images whose label the module prefers."""
    return float((module(inputs).argmax(1) == labels).double().mean())
