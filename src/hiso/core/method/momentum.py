"""Heavy-ball momentum: state that moves with every local step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hiso.core.method.base import Method, Values
from hiso.core.method.ops import Value


@dataclass(frozen=True, kw_only=True)
class Momentum(Method):
    """m ← beta·m + dx;  w ← w − lr·m.

    Source: Polyak (1964), with dx = (1/P) Σ_p g_p u_p instead of the gradient. During local steps,
        a client updates its own copy of m with its own scalars; the record then updates the shared
        m.
    """

    name: ClassVar[str] = "momentum"
    step_state: ClassVar[Mapping[str, float]] = {"m": 0.0}

    beta: float = 0.9

    def problems(self) -> Iterator[str]:
        """With beta >= 1 the sum m grows without bound."""
        if not np.float32(self.beta) < 1:
            yield f"beta = {self.beta} must be below 1"

    def rate(self, plain: float, hyper: Mapping[str, float]) -> float:
        """(1 − beta) · plain, because m sums up 1/(1 − beta) steps."""
        return (1 - hyper["beta"]) * plain

    def step(self, w: Value, state: Values, dx: Value, hyper: Values) -> tuple[Value, Values]:
        """One heavy-ball step."""
        m = hyper["beta"] * state["m"] + dx
        return w - hyper["lr"] * m, {"m": m}
