"""Identities for tests."""

from __future__ import annotations

from typing import Any

import torch

from hiso.core.identity import Identity
from hiso.core.method.base import Method


def identity_of(
    method: Method, *, seed: int = 0, dtype: torch.dtype = torch.float32, **fields: Any
) -> Identity:
    """That of a run of `method`."""
    name: Any = str(dtype).removeprefix("torch.")
    return Identity(method=method, seed=seed, dtype=name, **fields)
