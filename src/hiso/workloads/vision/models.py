"""Networks for small images, with weights that are a function of a seed."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from hiso.core.keys import raw_bits
from hiso.errors import LoadError

NETWORKS = ("cnn", "mlp")


def make_network(name: str, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """A network that maps float32 [B, *shape] to logits [B, classes], in eval mode.

    Weights and biases are uniform in ±1/√(fan-in), torch's own rule, drawn from (seed,
    parameter).

    Args:
        name: "cnn": two convolutions 3×3 with 8 and 16 channels, each followed by ReLU and a
            2×2 maximum, then a linear layer. "mlp": one hidden layer of 64.
        shape: Channels, height, width of an image.
        classes: Number of labels.
        seed: The run's seed.

    Raises:
        LoadError: There is no such network.
    """
    channels, height, width = shape
    if name == "cnn":
        body = [
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(16 * (height // 4) * (width // 4), classes),
        ]  # fmt: skip
    elif name == "mlp":
        size = channels * height * width
        body = [nn.Flatten(), nn.Linear(size, 64), nn.ReLU(), nn.Linear(64, classes)]
    else:
        raise LoadError(
            f"there is no network '{name}' for images: set model to {' or '.join(NETWORKS)}"
        )
    module = nn.Sequential(*body)
    for number, layer in enumerate(module):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for kind, parameter in enumerate(layer.parameters()):
                bits = raw_bits(seed, "network", (number, kind), parameter.numel())
                uniform = torch.from_numpy(bits / 2.0**64).view(parameter.shape)
                parameter.data = ((2 * uniform - 1) * bound).float()
    return module.eval()


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of all weights, hex."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
