"""What the losses and scalars of past rounds say of a run that goes wrong."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hiso.core.record import Record

GUARD_ROUNDS = 9
"""Number of rounds whose median loss the divergence guard looks at: the first ones and the last."""
STUCK_ROUNDS = 5
"""Number of rounds with scalars of zero after which weights count as stuck."""
_CONVERGED = 0.1
"""Share of the first rounds' loss below which a loss that no direction changes is a good one."""


def normal_loss(losses: Sequence[float]) -> float:
    """The median of the first rounds' losses, of which there is at least one."""
    return statistics.median(losses[:GUARD_ROUNDS])


def excess(first: Sequence[float], last: Sequence[float], factor: float | None) -> str | None:
    """What is wrong with the mean losses of the last rounds beside those of the first, or None.

    Compares medians over `GUARD_ROUNDS` rounds: where clients' labels are skewed, the loss of a
    single round may be many times that of another, though the model never moves.

    Args:
        first: Losses of the first rounds before this one, at most `GUARD_ROUNDS`.
        last: Losses of the last rounds, this one included, at most `GUARD_ROUNDS`.
        factor: How many times the normal loss is too much, squared until `first` is complete;
            None for never.
    """
    if factor is None or not first:
        return None
    if len(first) < GUARD_ROUNDS:  # few losses are noisy ones
        factor *= factor
    normal, now = normal_loss(first), statistics.median(last)
    if now <= factor * abs(normal):
        return None
    return (
        f"the mean loss is {last[-1]:.6g}, and the median of the last {len(last)} rounds, "
        f"{now:.6g}, is more than {factor:g} times the median {normal:.6g} of the first "
        f"{len(first)}"
    )


def stuck(first: Sequence[float], last: Sequence[Record], loss: float) -> str | None:
    """Why weights that have not moved for long are in trouble, or None if they are not.

    Weights that have blown up may give a loss that is finite, even small, but constant. A loss
    near zero that no direction changes is that of a model that has learned all there is.

    Args:
        first: Losses of the first rounds.
        last: The last records, at most `STUCK_ROUNDS`.
        loss: The loss of the last round.
    """
    if len(last) < STUCK_ROUNDS or any(record.coefficient.any() for record in last):
        return None
    if loss <= _CONVERGED * abs(normal_loss(first)):
        return None
    return (
        f"in the last {STUCK_ROUNDS} rounds no direction has changed the loss, {loss:.6g}: the "
        "weights have blown up, or mu is too small for the dtype"
    )


def last_good(records: Sequence[Record], losses: Sequence[float | None]) -> int | None:
    """The last round that began with a normal loss and moved the weights, or else 0.

    A normal loss is at most twice that of round 0. None if losses are not known, as in a client's
    copy of the log.
    """
    if not losses or losses[0] is None:
        return None
    limit = 2 * abs(losses[0])
    return max(
        r
        for r, (record, loss) in enumerate(zip(records, losses, strict=True))
        if r == 0 or (loss is not None and loss <= limit and record.coefficient.any())
    )
