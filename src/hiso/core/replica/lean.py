"""The compute copy of one module at a time: its parameters exist only while the module runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hiso.core.noise.layout import Entry

Fill = Callable[[Entry], Tensor]
"""Computes a parameter as last written, in the compute dtype."""


def attach(
    module: nn.Module, entries: dict[int, Entry], dtype: torch.dtype, fill: Fill
) -> list[RemovableHandle]:
    """Makes every submodule of `module` fetch its own parameters when it runs; returns the hooks.

    A module that reads the parameters of another module without calling it finds them empty.

    Args:
        module: The model.
        entries: By a trainable parameter's id, its position in the flat buffer.
        dtype: The compute dtype.
        fill: Called for each parameter, each time that its module runs.
    """
    hooks: list[RemovableHandle] = []
    for part in module.modules():
        own = [p for p in part.parameters(recurse=False) if id(p) in entries]
        if own:
            hooks.append(part.register_forward_pre_hook(_fetch(own, entries, fill)))
            hooks.append(part.register_forward_hook(_drop(own, dtype), always_call=True))
            _drop(own, dtype)()
    return hooks


def _fetch(own: list[nn.Parameter], entries: dict[int, Entry], fill: Fill) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        for parameter in own:
            parameter.data = fill(entries[id(parameter)])

    return hook


def _drop(own: list[nn.Parameter], dtype: torch.dtype) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        for parameter in own:
            parameter.data = torch.empty(0, dtype=dtype, device=parameter.device)

    return hook
