"""Who is asked: a client that is at fault again and again is left alone for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hiso.core.keys import permutation
from hiso.ring.round_settings import RoundSettings

FAULTS = 5
"""Faults within `WINDOW` rounds after which a client is not asked any more."""
WINDOW = 20
"""Those rounds, and the length of a first pause."""

Kind = Literal["invalid", "silent", "digest"]


@dataclass(frozen=True)
class Fault:
    """A client was asked, and there is no doubt that what came was no help.

    Attributes:
        round: The round.
        attempt: The attempt at it.
        client: The client.
        kind: "invalid": its replies were refused. "silent": none came, though one of another did.
            "digest": its replica was not the one that the round's quorum had.
    """

    round: int
    attempt: int
    client: int
    kind: Kind


@dataclass(frozen=True)
class Pause:
    """A client is not asked before a round.

    Attributes:
        until: The first round for which it is asked again.
        length: Rounds that it is left out.
    """

    until: int
    length: int


def pauses(faults: Iterable[Fault]) -> dict[int, Pause]:
    """The last pause of each client that has had one, by client.

    Five faults within 20 rounds begin a pause of 20 rounds, counted from the round after the
    fifth. If a pause begins sooner after the one before than that one was long, it is twice as
    long: 20, 40, 80, …. Two faults in attempts at the same round are two.

    Args:
        faults: In the order of rounds and attempts.
    """
    found: dict[int, Pause] = {}
    recent: dict[int, list[int]] = {}
    for fault in faults:
        client, now, last = fault.client, fault.round, found.get(fault.client)
        if last is not None and now < last.until:
            continue  # asked for want of others
        rounds = [r for r in recent.get(client, []) if r > now - WINDOW] + [now]
        recent[client] = rounds
        if len(rounds) == FAULTS:
            again = last is not None and now + 1 - last.until < last.length
            length = 2 * last.length if last is not None and again else WINDOW
            found[client] = Pause(now + 1 + length, length)
            recent[client] = []
    return found


def sample_clients(
    seed: int, round: int, attempt: int, settings: RoundSettings, paused: Mapping[int, Pause]
) -> list[int]:
    """The clients to ask, ascending: a function of the seed, the round, and the ledger before it.

    They are the first `sample` of a permutation of all clients, without those in a pause. Where
    that leaves fewer than `sample`, fewer are asked; and where it leaves fewer than `min_replies`,
    those of the others whose pauses end first.
    """
    order = permutation(seed, "sample", round, attempt, size=settings.clients).tolist()
    out = {c: pause.until for c, pause in paused.items() if round < pause.until}
    here = [client for client in order if client not in out]
    others = sorted((client for client in order if client in out), key=lambda c: out[c])
    count = min(settings.sample, max(len(here), settings.min_replies))
    return sorted((here + others)[:count])
