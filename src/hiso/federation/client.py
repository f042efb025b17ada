"""The client's side of a round: catch up, measure, answer. No I/O, and no data: losses are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from hiso.core.method import Method
from hiso.core.probe import Probe
from hiso.core.record import Record, check_sequence
from hiso.errors import ProtocolError, SettingsError
from hiso.federation.protocol import Plan, Reply
from hiso.federation.wire import hash_question


class Replica(Protocol):
    """What a client needs of `hiso.core`'s replica."""

    @property
    def position(self) -> int:
        """Number of records folded."""
        ...

    @property
    def chain(self) -> bytes:
        """Chain hash at that position."""
        ...

    @property
    def method(self) -> Method:
        """The method that folds."""
        ...

    @property
    def hyper(self) -> Mapping[str, float]:
        """Hyper-parameters in force at that position."""
        ...

    def digest(self) -> int:
        """Fingerprint of weights and state, unsigned 64 bits."""
        ...

    def replay(self, records: Sequence[Record]) -> None:
        """Folds the records, the first of which is that of round `position`."""
        ...


class Client:
    """One client's state machine; the engine computes the losses that the probe asks for.

    `begin` brings the replica to the plan's round and gives a probe, `finish` turns the finished
    probe into the reply. A plan that comes again after `finish` is answered with the same reply;
    one whose probe was interrupted is begun again from the start. Clients in one process may
    share a replica: records that it has folded already are skipped.

    Example:
        >>> probe = client.begin(plan)
        >>> while (point := probe.ask()) is not None:
        ...     probe.tell(loss_at(point))
        >>> reply = client.finish()

    Attributes:
        index: Index i of the client.
        examples: Size of its data set.
        replica: The replica.
        run: The run's id.
    """

    def __init__(self, index: int, examples: int, replica: Replica, run: str) -> None:
        """Raises SettingsError when the client has no examples."""
        if examples < 1:
            raise SettingsError(f"client {index} has {examples} examples: give it at least one")
        self.index, self.examples, self.replica, self.run = index, examples, replica, run
        self._asked = b""
        self._probe: Probe | None = None
        self._digest = 0
        self._reply: Reply | None = None

    def begin(self, plan: Plan) -> Probe:
        """Folds the records that the replica lacks and gives the probe of the plan's round.

        After `finish`, the same plan gives the finished probe, whose `ask()` is None.

        Raises:
            ProtocolError: The plan is for another run or client, or does not fit the replica's
                log. The replica is as it was.
        """
        asked = hash_question(plan)
        if self._reply is not None and self._probe is not None and self._reply.asked == asked:
            return self._probe
        if missing := self.missing(plan):
            self.replica.replay(missing)
        self._digest = int(self.replica.digest())
        self._asked, self._reply = asked, None
        self._probe = plan.probe(curvature=self.replica.method.curvature)
        return self._probe

    def finish(self) -> Reply:
        """The reply, once the probe has been told all its losses. Asking twice gives the same.

        Raises:
            RuntimeError: No probe has been begun, or it still asks for losses.
        """
        probe = self._probe
        if probe is None or probe.ask() is not None:
            raise RuntimeError(f"client {self.index} has no finished probe to reply with")
        if self._reply is None:
            self._reply = Reply(
                run=self.run,
                round=probe.round,
                client=self.index,
                asked=self._asked,
                digest=self._digest,
                scalars=probe.scalars.copy(),
                curvature=None if probe.curvature is None else probe.curvature.copy(),
                loss=float(probe.loss),
                examples=self.examples,
            )
        return self._reply

    def missing(self, plan: Plan) -> list[Record]:
        """The records of a plan that the replica lacks; they lead to the plan's round.

        Raises:
            ProtocolError: The plan is for another run or client, does not fit the replica's log,
                or has records that the method cannot fold.
        """
        at = self.replica.position
        missing = [record for record in plan.records if record.round >= at]
        problems: list[str] = []
        if plan.run != self.run:
            problems.append(f"it belongs to run {plan.run}, the replica to run {self.run}")
        if plan.client != self.index:
            problems.append(f"it is addressed to client {plan.client}")
        if plan.round < at:
            problems.append(
                f"the replica is past that round, at position {at}: if the run was rolled back, "
                f"restore a snapshot of position {plan.round} or earlier, or the base model"
            )
        elif plan.round > at + len(missing):
            problems.append(
                f"the replica stands at position {at}, but the plan's records begin at "
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
        check_sequence(missing, at, self.replica.method, self.replica.hyper)
        return missing
