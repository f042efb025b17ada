"""One client's forward passes: the walk through the points that a probe asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hiso.core.probe import Probe
from hiso.core.replica import Replica
from hiso.core.walk import Walk
from hiso.federation.protocol import Plan

Losses = Callable[[Sequence[Any]], list[float]]
"""Mean loss of each of several batches under the model as it is written now."""


def measure(
    replica: Replica, plan: Plan, probe: Probe, batch: Callable[[int], Any], losses: Losses
) -> None:
    """Answers all that `probe` still asks for.

    Local step k > 0 is measured on a walk: a copy of the weights, moved by the client's own
    scalars of the steps before. The replica itself is only read.

    Args:
        replica: The replica, at the plan's round.
        plan: What the server wants.
        probe: The client's probe of this plan, untouched or told the losses of whole steps.
        batch: The client's batch of each local step.
        losses: Called with one batch at a time.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
    """
    walk = replica.walk(plan.changes) if plan.steps > 1 else None
    walked, current = 0, None
    while (point := probe.ask()) is not None:
        while walk is not None and walked < point.step:
            take_step(walk, plan, probe, walked)
            walked, current = walked + 1, None
        current = batch(point.step) if current is None else current
        replica.write(point, round=plan.round, mu=probe.mu, walk=walk, changes=plan.changes)
        probe.tell(losses([current])[0])


def take_step(walk: Walk, plan: Plan, probe: Probe, step: int) -> None:
    """Moves a walk by the client's own scalars g of a local step: c_p = float32(g_p / P)."""
    own = (probe.scalars[step].astype(np.float64) / plan.directions).astype(np.float32)
    walk.step(round=plan.round, step=step, stream=plan.stream, coefficients=own)
