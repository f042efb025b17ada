"""All clients in one process, on one replica: a loop over directions, inside it over clients.

At the start of a round all replicas of a federation are equal, so one replica is enough for all
clients, and memory does not grow with the number of clients. Clients that measure at the same
point (with shared directions: all of them, in the first local step) share one perturbed copy of
the weights and may share one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Probe
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import NonFiniteLoss, ProtocolError
from hiso.ring.client import Client, Shard
from hiso.ring.passes import AtPoints, Backward, Losses
from hiso.ring.server import Aborted, Closed, Server


class Simulation:
    """A federation in one process.

    Example:
        >>> simulation = Simulation(server, replica, shards, losses)
        >>> for _ in range(10):
        ...     simulation.round()

    Attributes:
        server: The server; its ledger holds the run.
        replica: The one replica. Before and after every round it is at the end of the log.

    Raises:
        ProtocolError: The replica belongs to another run than the ledger, or has folded other
            records. The message says what differs.
    """

    def __init__(
        self,
        server: Server,
        replica: Replica,
        shards: Sequence[Shard],
        losses: Losses,
        *,
        backward: Mapping[int, Backward] | None = None,
        at_points: AtPoints | None = None,
        adjust: Mapping[int, NDArray[np.float64]] | None = None,
    ) -> None:
        """Resumes at the end of the server's log.

        Args:
            server: The server.
            replica: A replica of the server's run at any position of its log; missing records are
                folded.
            shards: Each client's data, by its index.
            losses: Evaluates the replica's model on batches.
            backward: By client index, the loss function of each client that uses backward passes.
            at_points: If given, one call measures all directions of a local step, instead of
                `losses`.
            adjust: By client index, the numbers that the client adds to the labels' scores; see
                `Client`.
        """
        server.ledger.check_replica(replica.identity, replica.position, replica.chain)
        self.server, self.replica, self._losses = server, replica, losses
        self._forward = 0.0
        self._at_points = None if at_points is None else self._timed_points(at_points)
        by_backward = {i: self._timed(loss) for i, loss in (backward or {}).items()}
        self._clients = [
            Client(
                i,
                shard,
                replica,
                self._timed_losses,
                backward=by_backward.get(i),
                at_points=self._at_points,
                adjust=(adjust or {}).get(i),
            )
            for i, shard in enumerate(shards)
        ]
        self._catch_up()

    def _catch_up(self) -> None:
        """Folds the records that the replica lacks, and writes the weights to the module."""
        missing = self.server.ledger.records(self.replica.position)
        if missing:
            self.replica.replay(missing)
            self.replica.write()

    def round(self) -> Closed | Aborted:
        """Runs one round: the clients measure, the server commits, the replica folds the record.

        Afterwards the module holds the new weights. An exception leaves the log unchanged and no
        round open.

        Raises:
            Diverged: A loss is not finite, or the round's loss has exploded.
        """
        started, self._forward = time.perf_counter(), 0.0
        try:
            self._catch_up()
            jobs = [
                (self._clients[plan.client], self._clients[plan.client].begin(plan), plan.changes)
                for plan in self.server.ask()
            ]
            self._first_step([job for job in jobs if job[0].forward])
            for client, probe, changes in jobs:
                client.measure(probe, changes)
            for client, _, _ in jobs:  # only now: a bad loss must not leave some clients answered
                verdict = self.server.tell(client.finish())
                if not verdict.accepted:
                    raise ProtocolError(f"client {client.index} was refused: {verdict.reason}")
            seconds = {"round": time.perf_counter() - started, "forward": self._forward}
            closed = self.server.close(seconds)
        except NonFiniteLoss as error:
            raise self.server.diverged(error) from error
        finally:
            self.server.drop()
        self._catch_up()
        return closed

    def _timed_losses(self, batches: Sequence[Any]) -> list[Outcome]:
        began = time.perf_counter()
        outcomes = [Outcome.of(value) for value in self._losses(batches)]
        self._forward += time.perf_counter() - began
        return outcomes

    def _timed_points(self, at_points: AtPoints) -> AtPoints:
        """The same function with its time counted, which includes writing the points."""

        def timed(
            write: Callable[[Point], None], points: Sequence[Point], batches: Sequence[Any]
        ) -> Sequence[Sequence[Outcome]]:
            began = time.perf_counter()
            outcomes = at_points(write, points, batches)
            self._forward += time.perf_counter() - began
            return outcomes

        return timed

    def _timed(self, loss: Backward) -> Backward:
        """The same loss function with its forward pass timed; the backward pass comes later."""

        def timed(batch: Any) -> Any:
            began = time.perf_counter()
            value = loss(batch)
            self._forward += time.perf_counter() - began
            return value

        return timed

    def _first_step(self, jobs: Sequence[tuple[Client, Probe, Mapping[str, float]]]) -> None:
        """Measures at the shared weights, writing each point once for all clients that ask for it.

        `Client.measure` would give the same bits, but would write each point once per client. If
        the objective lets batches share a pass, the results differ only by the rounding of that
        pass.
        """
        batches = [client.batches(probe.round)(0) for client, probe, _ in jobs]
        if self._at_points is not None:
            self._all_directions(jobs, batches, self._at_points)
            return
        while True:
            wanted: dict[Point, list[int]] = {}
            for number, (_, probe, _) in enumerate(jobs):
                point = probe.ask()
                if point is not None and point.step == 0:
                    wanted.setdefault(point, []).append(number)
            if not wanted:
                return
            for point, numbers in wanted.items():
                _, probe, changes = jobs[numbers[0]]
                self.replica.write(point, mu=probe.mu, changes=changes)
                outcomes = self._timed_losses([batches[number] for number in numbers])
                for number, outcome in zip(numbers, outcomes, strict=True):
                    jobs[number][1].tell(outcome)

    def _all_directions(
        self,
        jobs: Sequence[tuple[Client, Probe, Mapping[str, float]]],
        batches: Sequence[Any],
        at_points: AtPoints,
    ) -> None:
        """One call for all clients that ask for the same points."""
        wanted: dict[tuple[Point, ...], list[int]] = {}
        for number, (_, probe, _) in enumerate(jobs):
            wanted.setdefault(tuple(probe.ask_step()), []).append(number)
        for points, numbers in wanted.items():
            if not points or points[0].step:
                continue
            _, probe, changes = jobs[numbers[0]]
            write = partial(self.replica.write, mu=probe.mu, changes=changes)
            for outcomes in at_points(write, points, [batches[number] for number in numbers]):
                for number, outcome in zip(numbers, outcomes, strict=True):
                    jobs[number][1].tell(outcome)
