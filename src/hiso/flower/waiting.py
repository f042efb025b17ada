"""How long the server waits for the clients of a round that have not answered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import chain
from statistics import median

FACTOR = 3.0
"""How many times the median reply time the server waits."""
LEAST = 10.0
"""Shortest wait in seconds: messages alone may take some seconds more for one client."""
ROUNDS = 10
"""Number of past rounds whose reply times are used."""


def patience(times: Iterable[float], most: float) -> float:
    """Seconds to wait: three times the median reply time, but at least `LEAST`, at most `most`."""
    return min(most, max(LEAST, FACTOR * median(times)))


class Waiting:
    """Reply times of the open round and of the last ten, in the memory of this process only."""

    def __init__(self, most: float) -> None:
        """Args: the longest wait in seconds."""
        self._most = most
        self._past: deque[list[float]] = deque(maxlen=ROUNDS)
        self._now: list[float] = []

    def begin(self) -> None:
        """A round begins."""
        if self._now:
            self._past.append(self._now)
        self._now = []

    def accepted(self, seconds: float) -> None:
        """A reply was accepted, so many seconds after its plan was sent."""
        self._now.append(seconds)

    @property
    def seconds(self) -> float:
        """Seconds after which the open round may close without the missing replies.

        In the first round clients may still be loading or compiling, and nothing is known about
        them: only the longest wait applies.
        """
        if not self._past:
            return self._most
        return patience(chain(*self._past, self._now), self._most)
