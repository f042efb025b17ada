"""The client's side of a round: catch up, measure, answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hiso.core.identity import Identity
from hiso.core.measure.backward import check_backward
from hiso.core.measure.probe import Probe
from hiso.core.record import Record
from hiso.core.replica.sequence import check_sequence
from hiso.errors import ProtocolError, SettingsError
from hiso.ring.messages import Plan, Reply
from hiso.ring.passes import AtPoints, Backward, Losses, Writable, measure
from hiso.ring.wire import hash_question


class Shard(Protocol):
    """A client's private data."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        ...

    def batch(self, round: int, step: int) -> Any:
        """The batch of a local step: a pure function of its arguments."""
        ...


class Replica(Writable, Protocol):
    """The part of `hiso.core`'s replica that a client needs."""

    @property
    def position(self) -> int:
        """Number of records folded."""
        ...

    @property
    def chain(self) -> bytes:
        """Chain hash at that position."""
        ...

    @property
    def identity(self) -> Identity:
        """The identity of the run whose log is folded."""
        ...

    @property
    def hyper(self) -> Mapping[str, float]:
        """Hyper-parameters at that position."""
        ...

    @property
    def derived(self) -> Mapping[str, float]:
        """The method's values derived from the log up to that position."""
        ...

    def digest(self) -> int:
        """Fingerprint of weights and state, unsigned 64 bits."""
        ...

    def replay(self, records: Sequence[Record]) -> None:
        """Folds the records; the first of them must be the record of round `position`."""
        ...


class Client:
    """One client: `answer` computes the reply to a plan.

    A repeated plan is measured again, and gets the same reply. Clients in one process may share a
    replica: records that the replica has already folded are skipped. What a site allows, and what
    it has answered, is kept by `hiso.ring.site.Site`.

    An engine in which clients share forward passes replaces `answer` by three steps: `begin`
    returns the probe of a plan, the engine tells the probe all its losses, and `finish` returns
    the reply.

    Example:
        >>> for plan in server.ask():
        ...     server.tell(clients[plan.client].answer(plan))

    Attributes:
        index: Index i of the client.
        shard: The client's data.
        replica: The replica.
    """

    def __init__(
        self,
        index: int,
        shard: Shard,
        replica: Replica,
        losses: Losses,
        *,
        keep: Callable[[Sequence[Record], int], None] | None = None,
        backward: Backward | None = None,
        at_points: AtPoints | None = None,
        adjust: NDArray[np.float64] | None = None,
    ) -> None:
        """A client at the position of its replica.

        Args:
            index: Index i of the client.
            shard: The client's data.
            replica: The replica.
            losses: Evaluates the replica's model on batches.
            keep: Called with new records before they are folded, and with the replica's digest
                before these records. Used to keep the client's own copy of the log.
            backward: If given, the client uses backward passes through this loss; by default it
                uses forward passes only. Plan, reply and record do not depend on this choice.
            at_points: If given, one call measures all directions of a local step, instead of
                `losses`.
            adjust: Added to the labels' scores in every measurement, float64 [C]: for logit
                adjustment, the `log_shares` of the client's own labels. None for no adjustment.

        Raises:
            SettingsError: The client has no examples, `check_backward` refuses the method, or both
                `backward` and `adjust` are given, which is not supported.
        """
        if shard.examples < 1:
            raise SettingsError(
                f"client {index} has {shard.examples} examples: give it at least one"
            )
        if backward is not None:
            check_backward(replica.identity.method)
            if adjust is not None:
                raise SettingsError(f"client {index}: a backward pass cannot use adjusted scores")
        self._adjust = adjust
        self.index, self.shard, self.replica = index, shard, replica
        self._losses, self._keep, self._backward = losses, keep, backward
        self._at_points = at_points
        self._asked = b""
        self._probe: Probe | None = None
        self._digest = 0

    def answer(self, plan: Plan) -> Reply:
        """Folds missing records, measures the scalars of the plan, and returns the reply.

        Raises:
            ProtocolError: As `begin`.
            NonFiniteLoss: A loss is NaN or infinite.
        """
        probe = self.begin(plan)
        self.measure(probe, plan.changes)
        return self.finish()

    def measure(self, probe: Probe, changes: Mapping[str, float]) -> None:
        """Measures everything that the probe still asks for, on batches of its round.

        Raises:
            NonFiniteLoss: A loss is NaN or infinite.
        """
        batches = self.batches(probe.round)
        measure(
            self.replica, probe, batches, self._losses, changes, self._backward, self._at_points
        )

    @property
    def forward(self) -> bool:
        """Whether the client uses forward passes only."""
        return self._backward is None

    def batches(self, round: int) -> Callable[[int], Any]:
        """The batch of each local step of a round."""
        return lambda step: self.shard.batch(round, step)

    def begin(self, plan: Plan) -> Probe:
        """Folds missing records, and returns the probe of the plan's round.

        Raises:
            ProtocolError: As `catch_up`.
        """
        self.catch_up(plan)
        self._digest, self._asked = int(self.replica.digest()), hash_question(plan)
        replica = self.replica
        method = replica.identity.method
        self._probe = plan.probe(method, replica.hyper, replica.derived, self._adjust)
        return self._probe

    def finish(self) -> Reply:
        """The reply, after the probe was told all its losses.

        Raises:
            RuntimeError: There is no probe, or it still asks for losses.
        """
        probe = self._probe
        if probe is None or probe.ask() is not None:
            raise RuntimeError(f"client {self.index} has no finished probe to reply with")
        return Reply(
            run=self.replica.identity.run,
            round=probe.round,
            client=self.index,
            asked=self._asked,
            digest=self._digest,
            scalars=probe.scalars.copy(),
            curvature=None if probe.curvature is None else probe.curvature.copy(),
            loss=float(probe.loss),
            examples=self.shard.examples,
            facts=dict(probe.facts),
        )

    def catch_up(self, plan: Plan) -> None:
        """Folds the plan's records that the replica lacks; then the replica is at the plan's
        round.

        Raises:
            ProtocolError: The plan is for another run or client, does not fit the replica's log,
                or has records that the method cannot fold. In this case nothing is kept or folded.
        """
        if missing := self._missing(plan):
            if self._keep is not None:  # before folding: a replica can be rebuilt from the log
                self._keep(missing, int(self.replica.digest()))
            self.replica.replay(missing)

    def _missing(self, plan: Plan) -> list[Record]:
        at = self.replica.position
        missing = [record for record in plan.records if record.round >= at]
        problems: list[str] = []
        mine = self.replica.identity.run
        if plan.run != mine:
            problems.append(f"it belongs to run {plan.run}, the replica to run {mine}")
        if plan.client != self.index:
            problems.append(f"it is addressed to client {plan.client}")
        if plan.round < at:
            problems.append(
                f"the replica is past that round, at position {at}: if the run was rolled back, "
                f"restore a snapshot of position {plan.round} or earlier, or the base model"
            )
        elif plan.round > at + len(missing):
            problems.append(
                f"the replica is at position {at}, but the plan's records begin at "
                f"{plan.round - len(missing)}: ask the server to resend from {at} (`rejoin`)"
            )
        else:
            chain = self.replica.chain
            for record in missing:
                chain = record.chain(chain)
            if chain != plan.chain and not problems:
                problems.append(
                    f"the log has chain hash {plan.chain.hex()[:16]} at that round, the replica's "
                    f"(position {at}) leads to {chain.hex()[:16]}: it has folded other records. "
                    "Restore a snapshot of this run or the base model, then rejoin"
                )
        if problems:
            raise ProtocolError(
                f"client {self.index} cannot probe round {plan.round}: " + "; ".join(problems)
            )
        check_sequence(missing, at, self.replica.identity.method, self.replica.hyper)
        return missing
