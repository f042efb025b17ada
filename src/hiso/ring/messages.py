"""The two messages of a round, the server's plan and the client's reply, and their sizes.

Bytes are counted as in the papers: 4 for every float32 scalar in a message, for any receiver.
Parts of fixed size are not counted: the chain hash, the digest, the loss, the numbers that
identify a round, and the framing of the transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.probe import Probe, Scheme
from hiso.core.method.base import Method
from hiso.core.record import MAX_DIRECTION, MAX_ROUND, MAX_STEP, MAX_STREAM, Record
from hiso.errors import ProtocolError

SCALAR_BYTES = 4
_SMALLEST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))


def paper_bytes(rounds: int, steps: int, directions: int) -> int:
    """2·R·τ·P·4: the bytes of one client that takes part in every round, as in the papers' tables.

    Example:
        >>> paper_bytes(rounds=1500, steps=1, directions=5)  # DeComFL, OPT-1.3B, SST-2
        60000
    """
    return 2 * rounds * steps * directions * SCALAR_BYTES


def probe_problems(steps: int, directions: int, mu: float, scheme: str) -> Iterator[str]:
    """The reasons why these settings do not give a valid probe, one sentence each."""
    if not 1 <= steps <= MAX_STEP + 1:
        yield f"steps = {steps} must lie in [1, {MAX_STEP + 1}]"
    if not 1 <= directions <= MAX_DIRECTION + 1:
        yield f"directions = {directions} must lie in [1, {MAX_DIRECTION + 1}]"
    if not _SMALLEST <= mu <= _LARGEST:
        yield f"mu = {mu} must be a positive float32"
    if scheme not in get_args(Scheme):
        yield f"scheme = {scheme!r} must be " + " or ".join(get_args(Scheme))


@dataclass(frozen=True)
class Plan:
    """The server's message to one client for one round. It carries the scalars of `records`.

    Attributes:
        run: The run's id, the hex digest of its chain root.
        round: The round r to probe; the replica must be at position r, after records 0..r-1.
        client: Index i of the client.
        records: The records that the client lacks, in order, the last being r - 1.
        chain: Chain hash of the log before round r.
        steps: Number of local steps τ.
        directions: Number of directions P.
        mu: Perturbation size μ.
        scheme: Forward or central differences.
        stream: 0 for shared directions, i + 1 for the client's own.
        changes: Hyper-parameters that take a new value in this round. The round's record will
            contain them, and the round's local steps already use them.

    Raises:
        ProtocolError: A field is out of range, or the records do not lead up to the round.
    """

    run: str
    round: int
    client: int
    records: tuple[Record, ...]
    chain: bytes
    steps: int
    directions: int
    mu: float
    scheme: Scheme
    stream: int
    changes: dict[str, float] = field(default_factory=dict[str, float])

    def for_client(self, client: int) -> Plan:
        """The same plan for another client that lacks the same records."""
        return replace(self, client=client, stream=client + 1 if self.stream else 0)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            head = f"plan of round {self.round} for client {self.client}: "
            raise ProtocolError(head + "; ".join(problems))

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.round <= MAX_ROUND:
            yield f"the round must lie in [0, {MAX_ROUND}]"
        if not 0 <= self.client < MAX_STREAM:
            yield f"the client must lie in [0, {MAX_STREAM - 1}]"
        if self.stream not in (0, self.client + 1):
            yield f"stream = {self.stream} must be 0 (shared) or {self.client + 1} (its own)"
        rounds = [record.round for record in self.records]
        if rounds != list(range(self.round - len(rounds), self.round)):
            yield f"its records must follow each other up to round {self.round - 1}, not {rounds}"
        yield from probe_problems(self.steps, self.directions, self.mu, self.scheme)
        for name, value in self.changes.items():
            if not (0 < len(name.encode()) < 256 and abs(value) <= _LARGEST):
                yield f"change {name!r} = {value} is not a named finite float32"

    @property
    def scalars(self) -> int:
        """Number of float32 numbers sent down in this plan: catch-up and changes."""
        return sum(record.scalars for record in self.records) + len(self.changes)

    def probe(
        self,
        method: Method,
        hyper: Mapping[str, float],
        derived: Mapping[str, float],
        adjust: NDArray[np.float64] | None = None,
    ) -> Probe:
        """The probe for this plan.

        Args:
            method: The run's method.
            hyper: Its hyper-parameters before the round; the plan's changes override them.
            derived: Its values derived from the log before the round.
            adjust: Added by the client to the labels' scores, float64 [C]; None for nothing.
        """

        def biases(facts: Mapping[str, float]) -> NDArray[np.float64] | None:
            tuned = method.biases(derived, facts)
            return adjust if tuned is None else tuned if adjust is None else tuned + adjust

        solve = partial(method.solve, hyper={**hyper, **self.changes}, derived=derived)
        return Probe(
            client=self.client,
            round=self.round,
            steps=self.steps,
            directions=self.directions,
            mu=self.mu,
            scheme=self.scheme,
            stream=self.stream,
            with_curvature=method.measures_curvature,
            divided=method.divided,
            solve=solve if method.needs == "scores" else None,
            biases=biases if method.labels or adjust is not None else None,
            tuned=method.labels > 0,
        )


@dataclass(frozen=True, eq=False)
class Reply:
    """What one client measured. Its scalars are g, and κ and facts if the method has them.

    Attributes:
        run: As in the plan; `round` and `client` too.
        asked: The plan's `hash_question`, 32 bytes; it covers μ, scheme, chain and all other
            fields that determine the reply.
        digest: The replica's digest before the round, unsigned 64 bits.
        scalars: g, float32 [τ, P].
        curvature: κ, float32 [τ, P], or None.
        loss: Mean loss of the client's first batch of the round, for display and for the guard;
            None if the site does not report it.
        examples: Size of the client's data set, the weight of an example-weighted mean.
        facts: Other numbers that the method sends, float32 by name.
    """

    run: str
    round: int
    client: int
    asked: bytes
    digest: int
    scalars: NDArray[np.float32]
    curvature: NDArray[np.float32] | None
    loss: float | None
    examples: int
    facts: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def count(self) -> int:
        """Number of float32 numbers sent up in this reply."""
        return self.scalars.size * (1 if self.curvature is None else 2) + len(self.facts)
