"""One client's passes: the walk through the points that a probe asks for."""

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
"""What the model, as it is written now, makes of several batches: for each of them an `Outcome`, or
what `Outcome.of` takes in its place."""

Backward = Callable[[Any], Any]
"""The mean loss of a batch where the model is written now, as a tensor through which gradients
flow, or what `mean_loss` takes in its place."""


class Walk(Protocol):
    """Local steps on a copy of the weights; see `hiso.core.replica.local_steps`."""

    def step(
        self, *, round: int, step: int, stream: int, coefficients: NDArray[np.float32]
    ) -> None:
        """One local step with the client's own coefficients, float32 [P]."""
        ...


class Writable(Protocol):
    """What measuring needs of a replica; see `hiso.core.replica.replica`."""

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
        """A loss where the model is written, and its derivatives along directions [P]."""
        ...

    def walk(self, changes: Mapping[str, float] | None = None) -> Walk:
        """Starts local steps from here."""
        ...


def measure(
    replica: Writable,
    probe: Probe,
    batch: Callable[[int], Any],
    losses: Losses,
    changes: Mapping[str, float] | None = None,
    backward: Backward | None = None,
) -> None:
    """Answers all that `probe` still asks for.

    Local step k > 0 is measured on a walk: a copy of the weights, moved by the client's own
    scalars of the steps before. The replica itself is only read.

    Args:
        replica: The replica, at the probe's round.
        probe: The probe, untouched or told the losses of whole steps.
        batch: The client's batch of each local step.
        losses: Called with one batch at a time.
        changes: Hyper-parameters that take a new value with this round.
        backward: Called with the batch of each local step, in place of `losses`: the scalars are
            exact derivatives then, by one backward pass, where the differences would have been
            taken.

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
        replica.write(point, mu=probe.mu, walk=walk, changes=changes)
        probe.tell(Outcome.of(losses([current])[0]))


def take_step(walk: Walk, probe: Probe, step: int) -> None:
    """Moves a walk by the client's own scalars of a local step."""
    own = probe.coefficients(step)
    walk.step(round=probe.round, step=step, stream=probe.stream, coefficients=own)
