"""What a run tells whoever watches it: a terminal, a test, later a tracker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from hiso.federation.ledger import RoundRow
from hiso.federation.runfile import Evaluation

Advance = Callable[[int], None]


class Observer(Protocol):
    """Every method is called from the thread that runs."""

    def phase(self, text: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A context manager around work of `total` units; gives a function to report progress."""
        ...

    def started(self, position: int, rounds: int) -> None:
        """Rounds begin at `position` and end before `rounds`."""
        ...

    def round(self, row: RoundRow) -> None:
        """A round was committed."""
        ...

    def evaluated(self, evaluation: Evaluation) -> None:
        """The replica was evaluated."""
        ...

    def notice(self, text: str) -> None:
        """Something that a person should read."""
        ...


class Silent:
    """Watches nothing."""

    @contextmanager
    def phase(self, text: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """See `Observer.phase`."""
        yield lambda _: None

    def started(self, position: int, rounds: int) -> None:
        """See `Observer.started`."""

    def round(self, row: RoundRow) -> None:
        """See `Observer.round`."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """See `Observer.evaluated`."""

    def notice(self, text: str) -> None:
        """See `Observer.notice`."""
