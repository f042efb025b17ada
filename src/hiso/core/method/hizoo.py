"""HiZOO-style curvature: a diagonal measured along each direction by central differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hiso.core.method.base import Method, Values
from hiso.core.method.ops import Value, absolute, maximum, sqrt


@dataclass(frozen=True, kw_only=True)
class HiZoo(Method):
    """z = u/√h;  w ← w − lr·dx;  h ← max(floor, (1−ν)h + ν·|½·s2·h|), s2 = (1/P) Σ_p κ_p u_p².

    κ = [f(x+μz) + f(x−μz) − 2f(x)] / μ² is the curvature along z: one more scalar and one more
    forward pass per direction. E[½κu²]·h is the Hessian's diagonal plus half of the trace of
    h^(-1/2) ∇²f h^(-1/2), times h.

    Source: Zhao et al., "Second-order fine-tuning without pain for LLMs" (2024), whose diagonal is
        1/h in our notation. Deviations: the mean over P directions is inside the absolute value;
        `floor`.
    """

    name: ClassVar[str] = "hizoo"
    round_state: ClassVar[Mapping[str, float]] = {"h": 1.0}
    measures_curvature: ClassVar[bool] = True

    nu: float = 1e-4
    floor: float = 0.25

    def problems(self) -> Iterator[str]:
        """With nu > 1 the old h has a negative weight; with nu = 1, h may fall to 0."""
        if not np.float32(self.nu) <= 1:
            yield f"nu = {self.nu} must lie in [0, 1]"
        elif np.float32(self.nu) == 1 and not np.float32(self.floor):
            yield "nu = 1 needs a floor above 0: h would reach 0, and √h divides"

    def denom(self, state: Values, hyper: Values) -> Value:
        """√h."""
        del hyper
        return sqrt(state["h"])

    def learn(self, state: Values, dx: Value, s2: Value, hyper: Values) -> Values:
        """The measured curvature, smoothed."""
        del dx
        nu = hyper["nu"]
        h = (1.0 - nu) * state["h"] + nu * absolute(0.5 * s2 * state["h"])
        return {"h": maximum(hyper["floor"], h)}
