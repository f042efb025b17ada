"""The interface to which a run reports its progress: for a terminal, tests, trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from hiso.ring.ledger.runfile import Evaluation
from hiso.run.results import Estimate, Round

Advance = Callable[[int], None]


class Observer(Protocol):
    """Receives the progress. Every method is called from the thread of the run."""

    def phase(self, text: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """A context manager around work of `total` units; returns a function to report progress."""
        ...

    def estimated(self, estimate: Estimate) -> None:
        """The estimated cost of the remaining rounds."""
        ...

    def started(self, position: int, rounds: int) -> None:
        """Rounds begin at `position` and end before `rounds`."""
        ...

    def round(self, done: Round) -> None:
        """A round was committed."""
        ...

    def evaluated(self, evaluation: Evaluation) -> None:
        """The replica was evaluated."""
        ...

    def notice(self, text: str) -> None:
        """A message that the user should read."""
        ...


class Silent:
    """An observer that does nothing."""

    @contextmanager
    def phase(self, text: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """See `Observer.phase`."""
        yield lambda _: None

    def estimated(self, estimate: Estimate) -> None:
        """See `Observer.estimated`."""

    def started(self, position: int, rounds: int) -> None:
        """See `Observer.started`."""

    def round(self, done: Round) -> None:
        """See `Observer.round`."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """See `Observer.evaluated`."""

    def notice(self, text: str) -> None:
        """See `Observer.notice`."""


class Several:
    """Passes everything on to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    @contextmanager
    def phase(self, text: str, total: int | None = None) -> Iterator[Advance]:
        """See `Observer.phase`."""
        with ExitStack() as stack:
            each = [stack.enter_context(o.phase(text, total)) for o in self._observers]

            def advance(units: int) -> None:
                for one in each:
                    one(units)

            yield advance

    def estimated(self, estimate: Estimate) -> None:
        """See `Observer.estimated`."""
        for observer in self._observers:
            observer.estimated(estimate)

    def started(self, position: int, rounds: int) -> None:
        """See `Observer.started`."""
        for observer in self._observers:
            observer.started(position, rounds)

    def round(self, done: Round) -> None:
        """See `Observer.round`."""
        for observer in self._observers:
            observer.round(done)

    def evaluated(self, evaluation: Evaluation) -> None:
        """See `Observer.evaluated`."""
        for observer in self._observers:
            observer.evaluated(evaluation)

    def notice(self, text: str) -> None:
        """See `Observer.notice`."""
        for observer in self._observers:
            observer.notice(text)
