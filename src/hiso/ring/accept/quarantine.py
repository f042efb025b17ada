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
        kind: "invalid": its replies were refused. "silent": it sent no reply, others did, but
            fewer than `sample`. "digest": its digest was not that of the round's quorum.
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

    @property
    def since(self) -> int:
        """The first round for which the client is not asked."""
        return self.until - self.length


class Quarantine:
    """The pauses of all clients, from their faults.

    Five faults within 20 rounds begin a pause of 20 rounds, which starts after the round of the
    fifth fault. If fewer rounds lie between two pauses than the first one had, the second one is
    twice as long as the first: 20, 40, 80, …. Faults in two attempts at the same round are two.

    Attributes:
        pauses: The last pause of each client that has had one, by client.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        """Args: the faults so far, in the order of rounds and attempts."""
        self.pauses: dict[int, Pause] = {}
        self._recent: dict[int, tuple[int, ...]] = {}
        self._add(faults)

    def after(self, faults: Iterable[Fault]) -> Quarantine:
        """What later faults, in the order of rounds and attempts, add to these."""
        later = Quarantine()
        later.pauses, later._recent = dict(self.pauses), dict(self._recent)
        later._add(faults)
        return later

    def _add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            client, now, last = fault.client, fault.round, self.pauses.get(fault.client)
            if last is not None and now < last.until:
                continue  # asked because too few others were left
            rounds = (*(r for r in self._recent.get(client, ()) if r > now - WINDOW), now)
            if len(rounds) == FAULTS:
                again = last is not None and now + 1 - last.until < last.length
                length = 2 * last.length if last is not None and again else WINDOW
                self.pauses[client] = Pause(now + 1 + length, length)
                rounds = ()
            self._recent[client] = rounds


def sample_clients(
    seed: int, round: int, attempt: int, settings: RoundSettings, paused: Mapping[int, Pause]
) -> list[int]:
    """The clients to ask, ascending: a function of the seed, the round, and the ledger before it.

    They are the first `asked` of a permutation of all clients, without those that have withdrawn
    and those in a pause. If fewer
    than `asked` are left, fewer are asked. If fewer than `min_replies` are left, those whose
    pauses end first are asked too.
    """
    drawn = permutation(seed, "sample", round, attempt, size=settings.clients).tolist()
    order = [client for client in drawn if client not in settings.withdrawn]
    out = {c: pause.until for c, pause in paused.items() if round < pause.until}
    here = [client for client in order if client not in out]
    others = sorted((client for client in order if client in out), key=lambda c: out[c])
    count = min(settings.asked, max(len(here), settings.min_replies))
    return sorted((here + others)[:count])
