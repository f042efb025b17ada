"""A hash of a module, by which a run's identity recognises its base model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256, in hex, of a module's weights, persistent buffers, and the names of trained
    parameters.

    It covers name, shape, dtype and bytes of every tensor in `state_dict()`, in ascending order of
    names, and the names of the parameters with `requires_grad`.
    """
    digest = hashlib.sha256()
    for piece in tensor_bytes(module):
        digest.update(piece)
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    digest.update(hash_names(trained).encode())
    return digest.hexdigest()


def tensor_bytes(module: nn.Module) -> Iterator[bytes | memoryview]:
    """Name, shape and dtype, then the bytes, of every tensor in `state_dict()`.

    They come in ascending order of names. Non-persistent buffers are left out; tied weights appear
    under each of their names.
    """
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        yield f"{name} {tuple(value.shape)} {value.dtype}\n".encode()
        yield memoryview(value.reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def hash_names(names: Iterable[str]) -> str:
    """SHA-256, in hex, of a set of names; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
