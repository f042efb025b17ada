"""Measures directional derivatives with forward passes only, as a state machine.

A probe asks for losses point by point and is told the results. The engine decides where the losses
are computed, for how many clients at once, and on which device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.local import Local
from hiso.core.measure.outcome import Outcome
from hiso.core.noise.point import Point
from hiso.errors import NonFiniteLoss

Scheme = Literal["forward", "central"]
Solve = Callable[[Local, Mapping[str, float]], tuple[NDArray[np.float64], dict[str, float]]]
"""Maps the quadratic model of a batch, and the facts of the previous local step, to scalars [P]
and facts."""
Biases = Callable[[Mapping[str, float]], NDArray[np.float64] | None]
"""Maps the facts so far to the numbers added to the labels' scores, float64 [C], or None."""


def passes(
    directions: int, scheme: Scheme, *, with_curvature: bool = False, scores: bool = False
) -> int:
    """Forward passes of one local step: P + 1 (forward), 2P (central), 2P + 1 (with κ).

    With `scores`, central differences also need the base point: 2P + 1.
    """
    if scheme == "central" or with_curvature:
        return 2 * directions + (with_curvature or scores)
    return directions + 1


class Probe:
    """τ local steps of P directions for one client in one round.

    forward:  g = [f(x + μz; ξ) − f(x; ξ)] / μ                 (HiSo, Eq. 8), P + 1 passes a step
    central:  g = [f(x + μz; ξ) − f(x − μz; ξ)] / (2μ)         2P passes a step
    κ     =  [f(x + μz; ξ) + f(x − μz; ξ) − 2f(x; ξ)] / μ²     2P + 1 passes a step, central g

    With `solve`, the scalars are computed by `solve` from the outcomes at the same points, x
    included. With `biases`, its result is added to the labels' scores of every outcome; `tuned`
    means that the method tunes the biases, so that `Local` has columns for them.

    Differences are computed in float64 from the mean losses of the outcomes, and each result is
    rounded to float32 once. All points of a local step use the same batch ξ.

    Example:
        >>> probe = Probe(client=0, round=0, steps=1, directions=1, mu=0.5)
        >>> while (point := probe.ask()) is not None:
        ...     probe.tell(3.0 if point.sign else 1.0)
        >>> float(probe.scalars[0, 0])
        4.0

    Raises:
        ValueError: An argument is out of range.

    Attributes:
        scalars: g, float32 [τ, P], filled as losses are told.
        curvature: κ, float32 [τ, P], or None.
        facts: The facts that `solve` returned in the last local step; float32 numbers.
        loss: Mean loss of the client's first batch at (forward) or around (central) the shared
            weights; NaN until it is known.
        mu: μ rounded to float32, as used by the kernels.
    """

    def __init__(
        self,
        *,
        client: int,
        round: int,
        steps: int,
        directions: int,
        mu: float,
        scheme: Scheme = "forward",
        stream: int = 0,
        with_curvature: bool = False,
        divided: bool = True,
        solve: Solve | None = None,
        biases: Biases | None = None,
        tuned: bool = False,
    ) -> None:
        self.client, self.round, self.stream = client, round, stream
        self.mu = float(np.float32(mu))
        if steps < 1 or directions < 1 or not 0 < self.mu < math.inf:
            raise ValueError(f"no probe has {steps} steps, {directions} directions, mu = {mu}")
        if scheme not in get_args(Scheme):
            raise ValueError(f"scheme {scheme!r} must be one of {', '.join(get_args(Scheme))}")
        self.scalars = np.zeros((steps, directions), np.float32)
        self.curvature = np.zeros((steps, directions), np.float32) if with_curvature else None
        self.facts: dict[str, float] = {}
        self.loss = math.nan
        self._divided, self._solve, self._biases, self._tuned = divided, solve, biases, tuned
        self._base = scheme == "forward" or with_curvature or solve is not None
        self._signs = (1, -1) if scheme == "central" or with_curvature else (1,)
        self._points = self._order()
        self._wanted: Point | None = next(self._points)
        self._losses: dict[tuple[int, int], float] = {}
        self._outcomes: dict[tuple[int, int], Outcome] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(τ, P)."""
        steps, directions = self.scalars.shape
        return steps, directions

    def _order(self) -> Iterator[Point]:
        steps, directions = self.shape
        for k in range(steps):
            if self._base:
                yield Point(self.round, k)
            for p in range(directions):
                for sign in self._signs:
                    yield Point(self.round, k, self.stream, p, sign)

    def ask(self) -> Point | None:
        """The next point, or None if everything is measured. A second call returns the same
        point.
        """
        return self._wanted

    def ask_step(self) -> list[Point]:
        """All points that the present local step still needs, in the order in which `tell` takes
        their outcomes; empty if everything is measured.
        """
        if self._wanted is None:
            return []
        step = self._wanted.step
        return [point for point in self._order() if point.step == step][len(self._losses) :]

    def tell(self, outcome: Outcome | float) -> None:
        """Takes the outcome of the batch at the requested point, or only its mean loss.

        Raises:
            NonFiniteLoss: The mean loss is NaN or infinite. The probe is unchanged.
            SettingsError: Label scores (or losses of tokens) are needed, but there are none.
            RuntimeError: The probe does not ask for a point.
        """
        point = self._wanted
        if point is None:
            raise RuntimeError("all losses of this probe are known already")
        if self._biases is not None:
            outcome = Outcome.of(outcome).shifted(self._biases(self.facts))
        loss = outcome.mean if isinstance(outcome, Outcome) else float(outcome)
        self._check_loss(loss, point)
        if self._solve is not None:
            told = Outcome.of(outcome)
            if told.tokens is None:
                told.labelled()
            self._outcomes[point.direction, point.sign] = told
        self._losses[point.direction, point.sign] = loss
        self._wanted = next(self._points, None)
        if self._wanted is None or self._wanted.step != point.step:
            self._finish(point.step)
            self._losses.clear()
            self._outcomes.clear()

    def tell_step(self, loss: float, scalars: NDArray[np.float64]) -> None:
        """Takes all results of the requested local step at once, from a caller that has a
        gradient.

        Args:
            loss: f(w_k; ξ).
            scalars: g_p = ⟨∇f(w_k; ξ), z_p⟩, float64 [P].

        Raises:
            NonFiniteLoss: The loss or a scalar is NaN, infinite, or beyond float32.
            ValueError: The number of scalars is not P.
            RuntimeError: The probe does not ask for a step, has already been told a loss of this
                step, or needs more than derivatives of the mean loss.
        """
        point, (_, directions) = self._wanted, self.shape
        if point is None or self._losses or self._solve or self.curvature is not None:
            raise RuntimeError("the probe asks for losses at points, not for a whole step")
        if scalars.shape != (directions,):
            raise ValueError(f"scalars have shape {scalars.shape}, not [{directions}]")
        k = point.step
        self._check_loss(loss, Point(self.round, k))
        self.scalars[k] = [self._finite(float(g), k, p) for p, g in enumerate(scalars)]
        if k == 0:
            self.loss = loss
        while self._wanted is not None and self._wanted.step == k:
            self._wanted = next(self._points, None)

    def coefficients(self, step: int) -> NDArray[np.float32]:
        """c_p = g_p / P (or g_p) of a local step, which moves the client's own weights, float32
        [P].
        """
        divisor = self.shape[1] if self._divided else 1
        return (self.scalars[step].astype(np.float64) / divisor).astype(np.float32)

    def _check_loss(self, loss: float, point: Point) -> None:
        if not math.isfinite(loss):
            where = f"direction {point.direction} ({point.sign:+d}mu)" if point.sign else "w itself"
            raise NonFiniteLoss(
                f"the loss is {loss} for client {self.client} in round {self.round}, local step "
                f"{point.step}, at {where}: lower lr or mu, raise the method's floor, or use a "
                "wider dtype.",
                round=self.round,
                client=self.client,
            )

    def _finish(self, k: int) -> None:
        at, mu = self._losses, self.mu
        solved = None if self._solve is None else self._solved(self._solve, k)
        for p in range(self.shape[1]):
            if solved is not None:
                g = float(solved[p])
            elif -1 in self._signs:
                g = (at[p, 1] - at[p, -1]) / (2 * mu)
            else:
                g = (at[p, 1] - at[0, 0]) / mu
            self.scalars[k, p] = self._finite(g, k, p)
            if self.curvature is not None:
                kappa = (at[p, 1] + at[p, -1] - 2 * at[0, 0]) / (mu * mu)
                self.curvature[k, p] = self._finite(kappa, k, p)
        if k == 0:
            self.loss = at[0, 0] if self._base else math.fsum(at.values()) / len(at)

    def _solved(self, solve: Solve, k: int) -> NDArray[np.float64]:
        at, every = self._outcomes, range(self.shape[1])
        behind = [at[p, -1] for p in every] if -1 in self._signs else []
        ahead = [at[p, 1] for p in every]
        local = Local.of(at[0, 0], ahead, behind, self.mu, self._tuned)
        scalars, facts = solve(local, self.facts)
        self.facts = {
            name: float(np.float32(self._finite(value, k, 0))) for name, value in facts.items()
        }
        return scalars

    def _finite(self, scalar: float, step: int, direction: int) -> float:
        if not abs(scalar) <= float(np.finfo(np.float32).max):
            raise NonFiniteLoss(
                f"a scalar of client {self.client} in round {self.round}, local step {step}, "
                f"direction {direction} is {scalar:.3g}, beyond float32: the loss has exploded, or "
                "mu is far too small.",
                round=self.round,
                client=self.client,
            )
        return scalar
