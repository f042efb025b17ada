"""What tests compare of outcomes."""

from __future__ import annotations

from collections.abc import Iterable

from hiso.core.measure.outcome import Outcome


def means(outcomes: Iterable[Outcome]) -> list[float]:
    """The mean loss of each batch."""
    return [outcome.mean for outcome in outcomes]
