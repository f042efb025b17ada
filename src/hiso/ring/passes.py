"""One client's measurements: evaluates all points that a probe asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Probe
from hiso.core.noise.point import Point

Losses = Callable[[Sequence[Any]], Sequence[Any]]
"""Evaluates the model with its present parameters on several batches: for each batch an `Outcome`,
or a value that `Outcome.of` accepts."""

AtPoints = Callable[
    [Callable[[Point], None], Sequence[Point], Sequence[Any]], Sequence[Sequence[Outcome]]
]
"""Evaluates several batches at several points in one forward pass. Arguments: a function that
writes a point's weights into the model, the points, the batches. Returns for each point the outcome
of each batch."""

Backward = Callable[[Any], Any]
"""The mean loss of a batch with the model's present parameters, as a tensor with a gradient, or a
value that `mean_loss` accepts."""


class Walk(Protocol):
    """Local steps on a copy of the weights; see `hiso.core.replica.local_steps`."""

    def step(
        self, *, round: int, step: int, stream: int, coefficients: NDArray[np.float32]
    ) -> None:
        """One local step with the client's own coefficients, float32 [P]."""
        ...


class Writable(Protocol):
    """The part of a replica that a measurement needs; see `hiso.core.replica.replica`."""

    def write(
        self,
        point: Point | None = None,
        *,
        mu: float = 0.0,
        walk: Any = None,
        changes: Mapping[str, float] | None = None,
    ) -> None:
        """Fills the model's parameters with the weights at a point."""
        ...

    def project(
        self, loss: Callable[[], Any], *, stream: int, directions: int
    ) -> tuple[float, NDArray[np.float64]]:
        """The loss at the present parameters, and its derivatives along directions [P]."""
        ...

    def walk(self, changes: Mapping[str, float] | None = None) -> Walk:
        """Starts local steps from the replica's weights."""
        ...


def measure(
    replica: Writable,
    probe: Probe,
    batch: Callable[[int], Any],
    losses: Losses,
    changes: Mapping[str, float] | None = None,
    backward: Backward | None = None,
    at_points: AtPoints | None = None,
) -> None:
    """Measures everything that `probe` still asks for.

    Local step k > 0 is measured on a `Walk`: a copy of the weights, moved by the client's own
    scalars of the earlier steps. The replica itself is only read.

    Args:
        replica: The replica, at the probe's round.
        probe: The probe, new or already told the losses of complete steps.
        batch: The client's batch of each local step.
        losses: Called with one batch at a time.
        changes: Hyper-parameters that take a new value in this round.
        backward: Called with the batch of each local step, instead of `losses`. The scalars are
            then exact derivatives, from one backward pass at the weights of the local step.
        at_points: Called once for all points of a local step, instead of `losses`.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
    """
    walk = replica.walk(changes) if probe.shape[0] > 1 else None
    walked, current = 0, None
    while (point := probe.ask()) is not None:
        while walk is not None and walked < point.step:
            take_step(walk, probe, walked)
            walked, current = walked + 1, None
        current = batch(point.step) if current is None else current
        if backward is not None:
            replica.write(Point(probe.round, point.step), walk=walk, changes=changes)
            loss = partial(backward, current)
            found = replica.project(loss, stream=probe.stream, directions=probe.shape[1])
            probe.tell_step(*found)
            continue
        write = partial(replica.write, mu=probe.mu, walk=walk, changes=changes)
        if at_points is not None:
            for (outcome,) in at_points(write, probe.ask_step(), [current]):
                probe.tell(outcome)
            continue
        write(point)
        probe.tell(Outcome.of(losses([current])[0]))


def take_step(walk: Walk, probe: Probe, step: int) -> None:
    """Moves the weights of a walk by the client's own scalars of a local step."""
    own = probe.coefficients(step)
    walk.step(round=probe.round, step=step, stream=probe.stream, coefficients=own)
