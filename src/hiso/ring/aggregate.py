"""Makes the record of a round from its replies: averages in float64 and rounds once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hiso.core.method.base import Method
from hiso.core.record import Record
from hiso.errors import ProtocolError
from hiso.ring.accept.cuts import counted_examples
from hiso.ring.messages import Reply

Weighting = Literal["plain", "examples"]


def client_weights(replies: Sequence[Reply], weighting: Weighting) -> NDArray[np.float64]:
    """wt_i of each reply: 1, or the size of the client's data set; float64 [clients].

    A size counts up to 10 times the replies' median; see `counted_examples`.
    """
    if weighting == "plain":
        return np.ones(len(replies))
    return np.array(counted_examples(replies), np.float64)


def aggregate(
    round: int,
    replies: Sequence[Reply],
    *,
    weighting: Weighting,
    per_client: bool,
    changes: Mapping[str, float],
    method: Method,
) -> Record:
    """The record of a round from its valid replies; their order does not matter.

    With P directions and client weights wt_i (`client_weights`), per local step k:

        shared directions:  c[k, p]    = float32( Σ_i wt_i·g_i[k, p] / Σ_i wt_i / P ),  stream 0
        per-client ones:    c[k, i, p] = float32( wt_i·g_i[k, p] / Σ_i wt_i / P ),      stream i + 1

    and likewise for κ. For methods with `Method.divided` false there is no "/ P". Facts are
    averaged over clients, and not divided by P. Sums run in float64 over clients in ascending
    order; terms are ordered by k, then client, then p.

    Args:
        round: Round of the record.
        replies: At least one reply, each with g float32 [τ, P]; at most one per client.
        weighting: Whether clients have equal weights or are weighted by their number of examples.
        per_client: Whether every client measured along its own directions.
        changes: Hyper-parameters that take a new value in this round.
        method: The run's method; it determines whether there are κ and facts, and the division by
            P.

    Returns:
        The record, with τ·P terms (shared) or τ·clients·P terms (per client).

    Raises:
        ProtocolError: There are no replies, two replies from one client, different shapes, or a
            missing κ or fact.
    """
    replies = sorted(replies, key=lambda reply: reply.client)
    clients = [reply.client for reply in replies]
    shapes = {reply.scalars.shape for reply in replies}
    if len(shapes) != 1 or len(set(clients)) != len(clients):
        raise ProtocolError(
            f"round {round} cannot be aggregated: it needs replies of one shape [τ, P] from "
            f"distinct clients, not {sorted(shapes)} from clients {clients}"
        )
    weights = client_weights(replies, weighting)

    def average(values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """float32 [τ, clients or 1, P]."""
        weighted = [w * value.astype(np.float64) for w, value in zip(weights, values, strict=True)]
        if not per_client:
            weighted = [sum(weighted[1:], start=weighted[0])]
        mean = np.stack(weighted, axis=1) / sum(weights.tolist())
        if method.divided:
            mean = mean / replies[0].scalars.shape[1]
        return mean.astype(np.float32)

    learned = None
    if method.measures_curvature:
        measured = [reply.curvature for reply in replies if reply.curvature is not None]
        if len(measured) < len(replies):
            raise ProtocolError(f"round {round} cannot be aggregated: a reply lacks curvature")
        learned = average(measured).ravel()
    if any(set(reply.facts) != set(method.facts) for reply in replies):
        raise ProtocolError(f"round {round} cannot be aggregated: a reply lacks facts")
    facts = {
        name: math.fsum(w * r.facts[name] for w, r in zip(weights, replies, strict=True))
        / math.fsum(weights)
        for name in method.facts
    }
    coefficient = average([reply.scalars for reply in replies])
    step, slot, direction = np.indices(coefficient.shape)
    streams = np.array([client + 1 for client in clients] if per_client else [0], np.uint32)
    return Record(
        round,
        step.ravel().astype(np.uint16),
        streams[slot.ravel()],
        direction.ravel().astype(np.uint16),
        coefficient.ravel(),
        learned,
        dict(changes),
        facts,
    )
