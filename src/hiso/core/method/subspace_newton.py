"""A Gauss–Newton step in the span of the round's directions, from the label scores alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.local import Local
from hiso.core.method.base import Method, Needs
from hiso.core.method.derived import running_mean

if TYPE_CHECKING:
    from hiso.core.record import Record


@dataclass(frozen=True, kw_only=True)
class SubspaceNewton(Method):
    """α = (A + ridge·c·I)⁻¹ g at each client;  w ← w − lr · Σ_p ᾱ_p u_p.

    g [P] and A [P, P] are the gradient and the Gauss–Newton matrix of the client's batch along the
    directions, both computed from the scores of P + 1 forward passes (`Local`). ᾱ is the mean of α
    over clients. Each client also sends t, the mean curvature along a direction. c is the running
    mean of t in the log, 0.9·c + 0.1·t̄ after a round with mean t̄. In round 0, and while the log
    has no t above 0, a client uses its own t as c.

    The step solves the local quadratic model of the loss within the directions, so `lr` has no
    unit and needs no tuning; `ridge` is relative to the mean curvature c, and accounts for the
    noise of a batch. See `docs/theory.md` for the derivation.

    Attributes:
        lr: The fraction of the solved step that is taken.
        ridge: Added curvature, in units of c. With 0 the server sets it to 14·√P/(m·B), for P
            directions and m clients with batches of B examples.
    """

    name: ClassVar[str] = "subspace_newton"
    needs: ClassVar[Needs] = "scores"
    divided: ClassVar[bool] = False
    facts: ClassVar[tuple[str, ...]] = ("t",)
    derived: ClassVar[Mapping[str, float]] = {"c": 0.0}

    lr: float = 0.5
    ridge: float = 0.0

    def follow(
        self,
        hyper: Mapping[str, float],
        derived: Mapping[str, float],
        directions: int,
        examples: int | None,
    ) -> dict[str, float]:
        """The ridge, unless a value is set."""
        del derived
        if hyper["ridge"]:
            return {}
        return {"ridge": 14 * math.sqrt(directions) / self.known(examples, "ridge")}

    def solve(
        self,
        local: Local,
        facts: Mapping[str, float],
        hyper: Mapping[str, float],
        derived: Mapping[str, float],
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """α, which is 0 if there is no curvature, and t of the round's first local step."""
        a, g = local.gauss_newton, local.gradient
        t = facts.get("t", local.mean_curvature)
        c = derived["c"] or t
        if not c:
            return np.zeros_like(g), {"t": t}
        alpha = np.linalg.solve(a + hyper["ridge"] / local.parts * c * np.eye(len(g)), g)
        return alpha.astype(np.float64), {"t": t}

    def remember(self, derived: Mapping[str, float], record: Record) -> dict[str, float]:
        """The running mean of t."""
        return {"c": running_mean(derived["c"], record.facts["t"])}
