"""Runs a model with LoRA adapters at several points in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiso.core.noise.point import Point
from hiso.errors import SettingsError
from hiso.workloads.text.models import LanguageModel, hidden_states
from hiso.workloads.text.trained import adapter_layers

_ROUNDING = 1e-3
"""Largest allowed difference of hidden states, relative to their difference between points."""


class Together:
    """LoRA adapters at K points: each row of a batch uses the adapters of one of the points.

        y = W x + alpha/rank · B_k (A_k x)        for the rows of point k

    All other weights are the same at every point, so their products are computed once for the
    whole batch.
    """

    def __init__(
        self, lm: LanguageModel, write: Callable[[Point], None], points: Sequence[Point]
    ) -> None:
        """Keeps a copy of the adapters at each point.

        Args:
            lm: The model.
            write: Writes the weights at a point into the model.
            points: The K points.
        """
        self._points, self._row_points = len(points), torch.zeros(0, dtype=torch.int64)
        kept: dict[nn.Linear, list[Tensor]] = {layer: [] for layer in adapter_layers(lm.model)}
        for point in points:
            write(point)
            for layer, weights in kept.items():
                weights.append(layer.weight.detach().clone())
        self._weights = {layer: torch.stack(weights) for layer, weights in kept.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within this context, the model computes with the adapters of each row's point."""
        try:
            for layer, weights in self._weights.items():
                layer.forward = partial(self._forward, weights)
            yield
        finally:
            for layer in self._weights:
                layer.__dict__.pop("forward", None)

    def use(self, rows: Sequence[int], count: int) -> None:
        """Sets the point of each row of the next call of the model.

        Args:
            rows: Numbers of the rows' sequences, out of `count` sequences: K times the same ones,
                first those of point 0.
            count: Number of sequences.
        """
        self._row_points = torch.tensor([row * self._points // count for row in rows])

    def _forward(self, weights: Tensor, input: Tensor) -> Tensor:  # torch's name of the argument
        """y[i] = x[i] · weights[point of row i]ᵀ, for x [rows, T, in] and weights [K, out, in].

        Some models give x as [rows · T, in]; then y has this form too.
        """
        mine = weights[self._row_points.to(weights.device)]
        by_row = input.reshape(len(mine), -1, input.shape[-1])
        return torch.bmm(by_row, mine.transpose(1, 2)).reshape(*input.shape[:-1], -1)


def check_together(lm: LanguageModel) -> None:
    """Checks that several points in one pass give this model's own hidden states.

    Args:
        lm: A float32 model on the CPU, which is unchanged.

    Raises:
        SettingsError: The model trains something else than LoRA adapters, for example a
            classification head; or it arranges its batches in a way that hiso cannot follow.
    """
    own = {id(layer.weight) for layer in adapter_layers(lm.model)}
    others = [n for n, p in lm.model.named_parameters() if p.requires_grad and id(p) not in own]
    if others or not own:
        named: Any = others[0] if others else "no adapter"
        raise SettingsError(
            f"joint_directions needs a model that trains LoRA adapters and nothing else; "
            f"{lm.name} trains {named}. Set joint_directions = false."
        )
    if not _equal_to_separate(lm):
        raise SettingsError(
            f"joint_directions: one forward pass of {lm.name} for several points differs from "
            "separate passes. Set joint_directions = false."
        )


@torch.inference_mode()
def _equal_to_separate(lm: LanguageModel) -> bool:
    """Compares both ways, for two sequences and two points with clearly different adapters."""
    layers = adapter_layers(lm.model)
    before = [layer.weight.clone() for layer in layers]

    def write(point: Point) -> None:
        for layer, weight in zip(layers, before, strict=True):
            steps = torch.linspace(-1, 1, weight.numel()).view(weight.shape)
            layer.weight.copy_(weight + (point.direction + 1) * steps)

    points = [Point(0, 0, 0, direction, 1) for direction in range(2)]
    ids = torch.tensor([[1, 2, 3], [3, 1, 1]])
    try:
        together = Together(lm, write, points)
        separate: list[Tensor] = []
        for point in points:
            write(point)
            separate.append(hidden_states(lm.model, ids))
        together.use(range(4), 4)
        with together.active():
            found = hidden_states(lm.model, ids.repeat(2, 1))
    finally:
        for layer, weight in zip(layers, before, strict=True):
            layer.weight.copy_(weight)
    expected = torch.cat(separate)
    scale = float((separate[1] - separate[0]).abs().max())
    return bool((found - expected).abs().max() <= _ROUNDING * max(scale, 1e-6))
