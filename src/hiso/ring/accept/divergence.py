"""Detects a diverging run from the losses and scalars of past rounds.

The loss of a round is here the median of its clients' losses. Where half of the clients or more do
not report theirs, the size of their scalars takes its place. So fewer than half of the clients
cannot stop a run, or hide that it diverges, by reporting a loss of 1e30. With two replies the
median is the mean, and with one it is that loss: there a single client decides for its round. But
the guard also takes medians over rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hiso.core.record import Record

GUARD_ROUNDS = 9
"""Number of first rounds, and of last rounds, whose median losses the guard compares."""
STUCK_ROUNDS = 5
"""Number of rounds with all scalars zero after which the weights count as stuck."""
_CONVERGED = 0.1
"""A loss below this share of the first rounds' loss is good, even if no direction changes it."""


SIZE_FACTOR = 10.0
"""Sizes of scalars may grow by this factor more than losses may: they also grow in good runs."""


def median_loss(losses: Sequence[float | None]) -> float | None:
    """The median of the losses that were reported, if that is more than half; otherwise None."""
    told = [loss for loss in losses if loss is not None]
    return statistics.median(told) if 2 * len(told) > len(losses) else None


def normal_loss(losses: Sequence[float]) -> float:
    """The median of the losses of the first rounds (at least one loss)."""
    return statistics.median(losses[:GUARD_ROUNDS])


def excess(
    first: Sequence[float], last: Sequence[float], factor: float | None, what: str = "loss"
) -> str | None:
    """A problem text if the last rounds' losses are too large against the first; else None.

    Compares medians over `GUARD_ROUNDS` rounds: if clients' labels are skewed, the loss of one
    round may be many times the loss of another, even with an unchanged model.

    Args:
        first: Losses of the first rounds before this one, at most `GUARD_ROUNDS`.
        last: Losses of the last rounds, this one included, at most `GUARD_ROUNDS`.
        factor: Largest allowed ratio of the medians, squared until `first` is complete; None for
            no limit.
        what: What the numbers are: losses, or sizes of scalars.
    """
    if factor is None or not first:
        return None
    if len(first) < GUARD_ROUNDS:  # a median of few losses is noisy
        factor *= factor
    normal, now = normal_loss(first), statistics.median(last)
    if now <= factor * abs(normal):
        return None
    return (
        f"the {what} is {last[-1]:.6g}, and the median of the last {len(last)} rounds, "
        f"{now:.6g}, is more than {factor:g} times the median {normal:.6g} of the first "
        f"{len(first)}"
    )


def stuck(first: Sequence[float], last: Sequence[Record], loss: float | None) -> str | None:
    """A problem text if the weights have not moved for several rounds while the loss is high, or
    not known; else None.

    Weights that have exploded may give a loss that is finite, even small, but constant. A constant
    loss near zero is no problem: the model has learned everything in its data.

    Args:
        first: Losses of the first rounds.
        last: The last records, at most `STUCK_ROUNDS`.
        loss: The loss of the last round; None if it is not known.
    """
    if len(last) < STUCK_ROUNDS or any(record.coefficient.any() for record in last):
        return None
    if loss is None:
        return (
            f"in the last {STUCK_ROUNDS} rounds no direction has changed a loss, and sites do not "
            "report theirs: the weights have blown up, mu is too small for the dtype, or all is "
            "learned"
        )
    if first and loss <= _CONVERGED * abs(normal_loss(first)):
        return None
    return (
        f"in the last {STUCK_ROUNDS} rounds no direction has changed the loss, {loss:.6g}: the "
        "weights have blown up, or mu is too small for the dtype"
    )


def last_good(records: Sequence[Record], losses: Sequence[float | None]) -> int | None:
    """The last round that began with a normal loss and changed the weights; 0 if there is none.

    A normal loss is at most twice the loss of round 0. Returns None if losses are not known, as in
    a client's copy of the log.
    """
    if not losses or losses[0] is None:
        return None
    limit = 2 * abs(losses[0])
    return max(
        r
        for r, (record, loss) in enumerate(zip(records, losses, strict=True))
        if r == 0 or (loss is not None and loss <= limit and record.coefficient.any())
    )
