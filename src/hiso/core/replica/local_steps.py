"""A client's local steps, on a copy of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.kernels import Steps
from hiso.core.method.base import Method
from hiso.core.noise import check_counter

Fold = Callable[[Tensor, Mapping[str, Tensor], Steps], int]
"""Applies steps to weights and state in place; returns their digest."""


class Walk:
    """A client's local steps: its own weights and step state, with the replica's round state.

    Needs one float32 buffer, and one more for each step state; the replica is only read.

    Attributes:
        weights: w after the local steps so far, like `Replica.weights`.
    """

    def __init__(
        self,
        weights: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        method: Method,
        fold: Fold,
    ) -> None:
        self._fold = fold
        self._hyper = np.array([[hyper[name] for name in method.hyper]], np.float32)
        self.weights = weights.clone()
        self._state = {
            name: buffer.clone() if name in method.step_state else buffer
            for name, buffer in state.items()
        }

    def step(
        self, *, round: int, step: int, stream: int, coefficients: NDArray[np.float32]
    ) -> None:
        """One local step with the client's own c_p = g_p / P, float32 [P]; round state is
        unchanged.
        """
        if coefficients.ndim != 1 or not coefficients.size:
            raise ValueError(f"coefficients have shape {coefficients.shape}, not [P]")
        count = len(coefficients)
        check_counter(round, step, stream, count - 1)
        steps = Steps(
            round=np.array([round], np.uint64),
            first=np.array([True]),
            feeds=np.array([False]),
            start=np.array([0, count], np.int64),
            counter=np.arange(count, dtype=np.uint64) + np.uint64(step << 16),
            stream=np.full(count, stream, np.uint64),
            coefficient=np.ascontiguousarray(coefficients, np.float32),
            curvature=np.zeros(count, np.float32),
            hyper=self._hyper,
        )
        self._fold(self.weights, self._state, steps)
