"""Decides which clients are asked: after repeated faults a client is not asked for a while."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from hiso.core.keys import permutation
from hiso.ring.round_settings import RoundSettings

FAULTS = 5
"""Faults within `WINDOW` rounds after which a client is not asked for a while."""
WINDOW = 20
"""The number of these rounds, and the length of a first pause."""

Kind = Literal["invalid", "silent", "digest"]


@dataclass(frozen=True)
class Fault:
    """A client was asked, and did not send a valid reply with the right digest.

    Attributes:
        round: The round.
        attempt: The attempt at it.
        client: The client.
        kind: "invalid": its replies were refused. "silent": it sent no reply, and another client
            did. "digest": its digest was not that of the round's quorum.
    """

    round: int
    attempt: int
    client: int
    kind: Kind


@dataclass(frozen=True)
class Pause:
    """A time in which a client is not asked.

    Attributes:
        until: The first round for which it may be asked again.
        length: Number of rounds.
    """

    until: int
    length: int


def pauses(faults: Iterable[Fault]) -> dict[int, Pause]:
    """The last pause of each client that has had one, by client.

    Five faults within 20 rounds begin a pause of 20 rounds, which starts after the round of the
    fifth fault. If fewer rounds lie between two pauses than the first one had, the second one is
    twice as long as the first: 20, 40, 80, …. Faults in two attempts at the same round are two.

    Args:
        faults: In the order of rounds and attempts.
    """
    found: dict[int, Pause] = {}
    recent: dict[int, list[int]] = {}
    for fault in faults:
        client, now, last = fault.client, fault.round, found.get(fault.client)
        if last is not None and now < last.until:
            continue  # asked because too few others were left
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

    They are the first `sample` of a permutation of all clients, without those in a pause. If fewer
    than `sample` are left, fewer are asked. If fewer than `min_replies` are left, those whose
    pauses end first are asked too.
    """
    order = permutation(seed, "sample", round, attempt, size=settings.clients).tolist()
    out = {c: pause.until for c, pause in paused.items() if round < pause.until}
    here = [client for client in order if client not in out]
    others = sorted((client for client in order if client in out), key=lambda c: out[c])
    count = min(settings.sample, max(len(here), settings.min_replies))
    return sorted((here + others)[:count])
