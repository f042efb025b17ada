"""All clients in one process, on one replica: directions outside, clients inside.

At the start of a round every replica of a federation is the same by construction, so one serves
them all, and memory does not grow with the number of clients. Clients that measure at the same
point (with shared directions: all of them, in the first local step) share one perturbed copy of
the weights and may share one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hiso.core.probe import Point, Probe
from hiso.core.replica import Replica
from hiso.errors import NonFiniteLoss, ProtocolError
from hiso.federation.client import Client
from hiso.federation.measure import Losses, measure
from hiso.federation.protocol import Plan
from hiso.federation.server import Aborted, Closed, Server


class Shard(Protocol):
    """A client's private data."""

    @property
    def examples(self) -> int:
        """Number of examples."""
        ...

    def batch(self, round: int, step: int) -> Any:
        """The batch of a local step: a pure function of its arguments."""
        ...


@dataclass(frozen=True)
class _Job:
    client: Client
    plan: Plan
    probe: Probe
    batch: Callable[[int], Any]


class Simulation:
    """A federation in one process.

    Example:
        >>> simulation = Simulation(server, replica, shards, losses)
        >>> for _ in range(10):
        ...     simulation.round()

    Attributes:
        server: The server; its ledger is the run.
        replica: The one replica, which lags behind the log by one record at most.
    """

    def __init__(
        self, server: Server, replica: Replica, shards: Sequence[Shard], losses: Losses
    ) -> None:
        self.server, self.replica, self._shards, self._losses = server, replica, shards, losses

    def catch_up(self) -> None:
        """Folds what the log has and the replica lacks."""
        missing = self.server.ledger.records(self.replica.position)
        if missing:
            self.replica.replay(missing)

    def round(self) -> Closed | Aborted:
        """Runs one round: first the replica folds what it lacks, then the clients measure.

        An exception leaves the log as it was, the replica at its end, and no round open.

        Raises:
            Diverged: A loss is not finite, or the round's loss has exploded.
        """
        started, forward = time.perf_counter(), 0.0

        def losses(batches: Sequence[Any]) -> list[float]:
            nonlocal forward
            began = time.perf_counter()
            values = self._losses(batches)
            forward += time.perf_counter() - began
            return values

        try:
            jobs = [self._begin(plan) for plan in self.server.ask()]
            self._first_step(jobs, losses)
            for job in jobs:
                measure(self.replica, job.plan, job.probe, job.batch, losses)
            for job in jobs:  # only now: a loss that is not finite leaves no client half answered
                verdict = self.server.tell(job.client.finish())
                if not verdict.accepted:
                    raise ProtocolError(f"client {job.client.index} was refused: {verdict.reason}")
            return self.server.close({"round": time.perf_counter() - started, "forward": forward})
        except NonFiniteLoss as error:
            raise self.server.diverged(str(error), NonFiniteLoss) from error
        finally:
            self.server.drop()

    def _begin(self, plan: Plan) -> _Job:
        shard = self._shards[plan.client]
        client = Client(plan.client, shard.examples, self.replica, plan.run)
        probe = client.begin(plan)
        return _Job(client, plan, probe, lambda step: shard.batch(plan.round, step))

    def _first_step(self, jobs: Sequence[_Job], losses: Losses) -> None:
        """Measures at the shared weights, each point once for all clients that ask for it."""
        batches = [job.batch(0) for job in jobs]
        while True:
            wanted: dict[Point, list[int]] = {}
            for number, job in enumerate(jobs):
                point = job.probe.ask()
                if point is not None and point.step == 0:
                    wanted.setdefault(point, []).append(number)
            if not wanted:
                return
            for point, numbers in wanted.items():
                plan, mu = jobs[numbers[0]].plan, jobs[numbers[0]].probe.mu
                self.replica.write(point, round=plan.round, mu=mu, changes=plan.changes)
                values = losses([batches[number] for number in numbers])
                for number, value in zip(numbers, values, strict=True):
                    jobs[number].probe.tell(value)
