"""Selects the replies of a round whose replica has the majority's digest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from hiso.ring.messages import Reply


@dataclass(frozen=True)
class Agreement:
    """The result of comparing the digests in a round's replies.

    Attributes:
        digest: The digest of more than half of the replies, unsigned 64 bits.
        good: The replies with that digest.
        set_aside: For each client with another digest, since when its replica differs and what to
            do.
        shortage: Why the round cannot be committed, or None.
    """

    digest: int
    good: list[Reply]
    set_aside: dict[int, str]
    shortage: str | None


def agree(
    replies: Sequence[Reply],
    asked: Collection[int],
    min_replies: int,
    last_agreed: Callable[[int], int | None],
) -> Agreement:
    """Finds the digest of more than half of the `replies`, and the clients that differ from it.

    Args:
        replies: The valid replies of a round, one per client.
        asked: The sampled clients.
        min_replies: Smallest number of good replies for the round.
        last_agreed: The last round in which a client agreed with the quorum.
    """
    digests = {reply.client: f"{reply.digest:016x}" for reply in replies}
    digest, votes = Counter(r.digest for r in replies).most_common(1)[0] if replies else (0, 0)
    majority = 2 * votes > len(replies)
    if majority:
        others = f"{votes} of {len(replies)} repliers have {digest:016x}"
    else:
        others = "no majority has any"
    set_aside = {
        r.client: f"client {r.client} has digest {digests[r.client]} in round {r.round}, {others}; "
        f"{_parted(r.round, last_agreed(r.client))}. "
        "Start it again from the base model or a good snapshot"
        for r in replies
        if not majority or r.digest != digest
    }
    problems: list[str] = []
    if replies and not majority:
        problems.append(f"the {len(replies)} repliers' replicas differ and none has a majority")
    elif votes < min_replies:
        problems.append(f"{votes} good replies arrived, but min_replies = {min_replies}")
    silent = sorted(set(asked) - digests.keys())
    if problems and silent:
        problems.append(f"clients {silent} were asked and sent no valid reply")
    good = [reply for reply in replies if majority and reply.digest == digest]
    shortage = "; ".join([*problems, *set_aside.values()]) if problems else None
    return Agreement(digest, good, set_aside, shortage)


def _parted(round: int, agreed: int | None) -> str:
    if round == 0:
        return "it has folded no record yet, so its base weights or its method differ"
    if agreed is None:
        return (
            f"it never agreed: it differs from the start or since one of records 0 to {round - 1}"
        )
    records = f"{agreed} to {round - 1}"
    return f"it last agreed in round {agreed}, so it differs since one of records {records}"
