"""How far one client may move a round: what it sends counts up to some multiple of the median."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from hiso.ring.messages import Reply

COUNT_FACTOR = 10
"""How many times the round's median number of examples a client's own may count."""


@dataclass(frozen=True)
class Cut:
    """Something in a reply that counted for less than it said.

    Attributes:
        round: The round.
        client: The client.
        what: "examples".
        given: What the reply said.
        taken: What was taken in its place.
    """

    round: int
    client: int
    what: str
    given: float
    taken: float

    def __str__(self) -> str:
        return (
            f"client {self.client} in round {self.round}: {self.what} = {self.given:.6g} "
            f"counts as {self.taken:.6g}"
        )


def counted_examples(replies: Sequence[Reply]) -> list[int]:
    """The number of examples that each reply counts with: at most 10 times the median of them all.

    Of an even number of replies the median is the lower one of the two in the middle: so one of
    two clients weighs at most ten times as much as the other.
    """
    if not replies:
        return []
    most = COUNT_FACTOR * median_low(reply.examples for reply in replies)
    return [min(reply.examples, most) for reply in replies]


def example_cuts(replies: Sequence[Reply]) -> list[Cut]:
    """The replies whose number of examples counts for less."""
    return [
        Cut(reply.round, reply.client, "examples", reply.examples, count)
        for reply, count in zip(replies, counted_examples(replies), strict=True)
        if count < reply.examples
    ]
