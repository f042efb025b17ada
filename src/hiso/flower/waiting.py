"""How long the server waits for the clients of a round that have not answered."""

from __future__ import annotations

from bisect import insort
from collections import deque
from itertools import chain

FACTOR = 3.0
"""How many times the median reply time the server waits."""
LEAST = 10.0
"""Shortest wait in seconds: messages alone may take some seconds more for one client."""
ROUNDS = 10
"""Number of past rounds whose reply times are used."""


def patience(usual: float, most: float) -> float:
    """Seconds to wait: three times the usual reply time, but at least `LEAST`, at most `most`."""
    return min(most, max(LEAST, FACTOR * usual))


class Waiting:
    """Reply times of the open round and of the last ten, in the memory of this process only."""

    def __init__(self, most: float) -> None:
        """Args: the longest wait in seconds."""
        self._most = most
        self._past: deque[list[float]] = deque(maxlen=ROUNDS)
        self._now: list[float] = []
        self._all: list[float] = []  # of these rounds, in ascending order

    def begin(self) -> None:
        """A round begins."""
        if self._now:
            self._past.append(self._now)
        self._now, self._all = [], sorted(chain(*self._past))

    def accepted(self, seconds: float) -> None:
        """A reply was accepted, so many seconds after its plan was sent."""
        self._now.append(seconds)
        insort(self._all, seconds)

    @property
    def seconds(self) -> float:
        """Seconds after which the open round may close without the missing replies.

        The usual reply time is the median. In the first round clients may still be loading or
        compiling, and nothing is known about them: only the longest wait applies.
        """
        if not self._past:
            return self._most
        count = len(self._all)
        usual = (self._all[(count - 1) // 2] + self._all[count // 2]) / 2
        return patience(usual, self._most)
