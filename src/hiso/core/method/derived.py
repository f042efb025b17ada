"""State that is computed from the log alone, by everyone who has the records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from hiso.core.record import Record

State = TypeVar("State")


class Derived(Protocol[State]):
    """A pure fold over records; `Method` and `MeanDiagonal` are examples."""

    def remember(self, state: State, record: Record, /) -> State:
        """The state after a record, from the state before it. A pure function."""
        ...


def running_mean(mean: float, new: float) -> float:
    """0.9 · mean + 0.1 · new; or `new` while the mean is 0, that is, before the first value."""
    return 0.9 * mean + 0.1 * new if mean else new


def remember_all(what: Derived[State], records: Iterable[Record], state: State) -> State:
    """The state after `records`, from the `state` before the first of them."""
    for record in records:
        state = what.remember(state, record)
    return state
