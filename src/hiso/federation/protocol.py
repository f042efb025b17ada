"""The two messages of a round: the server's plan and the client's reply."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hiso.core.probe import Scheme
from hiso.core.record import Record


@dataclass(frozen=True)
class Plan:
    """What one client needs for one round. Scalars on the wire: those of `records`.

    Attributes:
        run: The run's id, the hex digest of its chain root.
        round: The round r to probe; the replica must stand at position r, after records 0..r-1.
        attempt: Counts the tries of a round that was aborted; a reply quotes it.
        client: Index i of the client.
        records: The records that the client lacks, in order, the last being r - 1.
        chain: Chain hash of the log before round r.
        steps: Number of local steps τ.
        directions: Number of directions P.
        mu: Perturbation size μ.
        scheme: Forward or central differences.
        stream: 0 for shared directions, i + 1 for the client's own.
        changes: Hyper-parameters that take a new value with this round; the round's record will
            carry them, and local steps use them already.
    """

    run: str
    round: int
    attempt: int
    client: int
    records: tuple[Record, ...]
    chain: bytes
    steps: int
    directions: int
    mu: float
    scheme: Scheme
    stream: int
    changes: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def scalars(self) -> int:
        """float32 numbers that travel down with this plan, catch-up included."""
        return sum(record.scalars for record in self.records)


@dataclass(frozen=True, eq=False)
class Reply:
    """What one client measured. Scalars on the wire: g, and κ where the method has it.

    Attributes:
        run: As in the plan, like `round`, `attempt` and `client`.
        chain: Chain hash of the log that the client's replica has folded.
        digest: The replica's digest at that position, before the round, unsigned 64 bits.
        scalars: g, float32 [τ, P].
        curvature: κ, float32 [τ, P], or None.
        loss: Mean loss of the client's first batch of the round, for people and for the guard.
        examples: Size of the client's data set, the weight of an example-weighted mean.
    """

    run: str
    round: int
    attempt: int
    client: int
    chain: bytes
    digest: int
    scalars: NDArray[np.float32]
    curvature: NDArray[np.float32] | None
    loss: float
    examples: int
