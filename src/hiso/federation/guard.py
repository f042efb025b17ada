"""When the loss of a round is out of all proportion."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

GUARD_ROUNDS = 5
"""Number of first rounds whose median loss the divergence guard takes as normal; until there are
as many, the factor is squared."""


def normal_loss(losses: Sequence[float]) -> float:
    """The median of the first rounds' losses, of which there is at least one."""
    return statistics.median(losses[:GUARD_ROUNDS])


def excess(loss: float, losses: Sequence[float], factor: float | None) -> str | None:
    """What is wrong with the mean loss of a round after those of the first rounds, or None.

    Args:
        loss: Mean loss of the round.
        losses: Those of the rounds before, of which the first `GUARD_ROUNDS` are looked at.
        factor: How many times the normal loss is too much; None for never.
    """
    first = losses[:GUARD_ROUNDS]
    if factor is None or not first:
        return None
    if len(first) < GUARD_ROUNDS:  # few losses are noisy ones
        factor *= factor
    normal = normal_loss(first)
    if loss <= factor * abs(normal):
        return None
    return (
        f"the mean loss is {loss:.6g}, more than {factor:g} times the median {normal:.6g} of the "
        f"first {len(first)} rounds"
    )
