"""How far one client may move a round: what it sends counts up to some multiple of the median."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hiso.ring.messages import Reply

COUNT_FACTOR = 10
"""How many times the round's median number of examples a client's own may count."""
CLIP_ROUNDS = 50
"""Number of rounds whose replies tell how large a reply normally is, the open one included."""
LARGEST_SIZE = 1e6
"""The largest size of a reply where sizes are limited at all, whatever others are."""


@dataclass(frozen=True)
class Cut:
    """Something in a reply that counted for less than it said.

    Attributes:
        round: The round.
        client: The client.
        what: "examples", or what was scaled down: "scalars", "curvature", or the name of a fact.
        given: What the reply said: a number of examples, or a size (see `sizes`).
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


class Measured(Protocol):
    """What a client measured: a reply, or the row that a ledger keeps of it."""

    @property
    def scalars(self) -> NDArray[np.float32]:
        """g."""
        ...

    @property
    def curvature(self) -> NDArray[np.float32] | None:
        """κ, or None."""
        ...

    @property
    def facts(self) -> Mapping[str, float]:
        """Numbers by name."""
        ...


def sizes(reply: Measured) -> dict[str, float]:
    """Root mean square of a reply's scalars, of its curvature, and of each of its facts, by name.

    A norm per scalar: it stays the same where the number of directions or of local steps changes.
    """
    parts = {"scalars": reply.scalars.ravel().tolist()}
    if reply.curvature is not None:
        parts["curvature"] = reply.curvature.ravel().tolist()
    parts |= {name: [value] for name, value in reply.facts.items()}
    return {
        name: math.sqrt(math.fsum(value * value for value in values) / len(values))
        for name, values in parts.items()
    }


class Clip:
    """Scales down what is too large beside the replies of the last 50 rounds.

    A reply counts up to `factor` times the median size of the replies that counted in those
    rounds, its own round included, as they came (so limits follow where honest sizes go), and
    never beyond 1e6. Sizes of zero say nothing of the scale and are left out. Of an even number the
    median is the lower one of the two in the middle. Scalars, curvature and each fact are limited
    by themselves. A function of the log: made anew from the ledger's replies, it limits alike.
    """

    def __init__(self, replies: Iterable[tuple[int, Measured]]) -> None:
        """From (round, reply) of the replies that counted in the last 49 rounds, by round."""
        rounds: dict[int, list[dict[str, float]]] = {}
        for number, reply in replies:
            rounds.setdefault(number, []).append(sizes(reply))
        self._rounds = deque(rounds.values(), maxlen=CLIP_ROUNDS - 1)

    def apply(self, replies: Sequence[Reply], factor: float) -> tuple[list[Reply], list[Cut]]:
        """The replies of the open round as they count, and what was cut."""
        found = [sizes(reply) for reply in replies]
        limits = {
            name: _limit([one[name] for round in (*self._rounds, found) for one in round], factor)
            for name in (found[0] if found else ())
        }
        cuts = [
            Cut(reply.round, reply.client, name, size, limits[name])
            for reply, one in zip(replies, found, strict=True)
            for name, size in one.items()
            if size > limits[name]
        ]
        return [_scaled(r, [cut for cut in cuts if cut.client == r.client]) for r in replies], cuts

    def remember(self, replies: Sequence[Reply]) -> None:
        """Takes note of the replies that counted in a round that was committed, as they came."""
        self._rounds.append([sizes(reply) for reply in replies])


def _limit(known: Sequence[float], factor: float) -> float:
    told = [size for size in known if size]
    return min(LARGEST_SIZE, factor * median_low(told)) if told else LARGEST_SIZE


def _scaled(reply: Reply, cuts: Sequence[Cut]) -> Reply:
    factors = {cut.what: cut.taken / cut.given for cut in cuts}
    if not factors:
        return reply

    def scale(values: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return (values.astype(np.float64) * factors.get(name, 1.0)).astype(np.float32)

    return replace(
        reply,
        scalars=scale(reply.scalars, "scalars"),
        curvature=None if reply.curvature is None else scale(reply.curvature, "curvature"),
        facts={name: value * factors.get(name, 1.0) for name, value in reply.facts.items()},
    )
