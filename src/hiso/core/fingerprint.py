"""A hash of a module: what a run's identity says of its base model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's weights, persistent buffers, and which of them are trained, hex.

    It covers name, shape, dtype and bytes of every tensor in `state_dict()`, in ascending order of
    names, and the names of the parameters with `requires_grad`.
    """
    digest = hashlib.sha256()
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(memoryview(value.reshape(-1).view(torch.uint8).numpy()))  # pyright: ignore[reportArgumentType]
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    digest.update(hash_names(trained).encode())
    return digest.hexdigest()


def hash_names(names: Iterable[str]) -> str:
    """SHA-256 of names, in whatever order they come, hex."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
