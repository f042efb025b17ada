"""HiSo: directions scaled by a diagonal that every replica learns from the scalars."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hiso.core.method.base import Method, Values
from hiso.core.method.ops import Value, maximum, sqrt


@dataclass(frozen=True, kw_only=True)
class HiSo(Method):
    """z = u/√h;  w ← w − lr·dx, dx = (1/P) Σ_p g_p z_p;  h ← max(floor, (1−ν)h + ν(dx² + ε)).

    Source: HiSo (ICLR 2026), Eq. 8 and Eq. 12. h starts at 1 and stays fixed within a round.
    `feed` chooses the local steps from which h is updated: `first` is Eq. 12, `all` the paper's
    τ-step variant, `last` the default of the authors' code; with one local step all are the same.

    Deviations: `floor`, because Eq. 12 alone lets h decay while scalars are small, and the
    perturbation mu/√h then grows without bound; `floor=0` gives the paper's rule. The noise is
    `binomial` by default, not normal.

    Attributes:
        nu: Update rate ν, the weight of the newest step; 0.05 as in the authors' code.
        eps: ε, added to dx².
        floor: Smallest value of h; so z is at most 1/√floor times as long as u.
    """

    name: ClassVar[str] = "hiso"
    round_state: ClassVar[Mapping[str, float]] = {"h": 1.0}

    nu: float = 0.05
    eps: float = 1e-8
    floor: float = 0.25

    def problems(self) -> Iterator[str]:
        """With nu > 1 the old h has a negative weight; with eps = floor = 0, h may fall to 0."""
        if not np.float32(self.nu) <= 1:
            yield f"nu = {self.nu} must lie in [0, 1]"
        if not (np.float32(self.eps) or np.float32(self.floor)):
            yield "eps and floor cannot both be 0: h would reach 0, and √h divides"

    def denom(self, state: Values, hyper: Values) -> Value:
        """√h."""
        del hyper
        return sqrt(state["h"])

    def learn(self, state: Values, dx: Value, s2: Value, hyper: Values) -> Values:
        """Eq. 12 with a floor."""
        del s2
        nu = hyper["nu"]
        h = (1.0 - nu) * state["h"] + nu * (dx * dx + hyper["eps"])
        return {"h": maximum(hyper["floor"], h)}
