"""The server and all clients of a baseline in one process, on one replica."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from hiso.core.keys import choose
from hiso.core.measure.probe import passes
from hiso.core.replica.replica import Replica
from hiso.lab.baselines.baseline_settings import ZEROTH_ORDER, BaselineSettings
from hiso.lab.baselines.vector_client import Clock, descend, search
from hiso.lab.baselines.vector_server import Server, Update, by_name
from hiso.ring.messages import SCALAR_BYTES
from hiso.run.observer import Observer
from hiso.run.results import Round
from hiso.run.workload.base import Workload, measure_split

BACKWARD = 2
"""A backward pass counts as this many forward passes."""


class Federation:
    """A federation that sends vectors.

    Example:
        >>> federation = Federation(settings, workload, replica)
        >>> for _ in range(10):
        ...     federation.round()

    Attributes:
        workload: Model, data and shards.
        replica: The global weights; its method is `zo_sgd`.
        server: The server.
    """

    def __init__(self, settings: BaselineSettings, workload: Workload, replica: Replica) -> None:
        self.workload, self.replica, self._settings = workload, replica, settings
        self.server = Server(settings.method, settings.hyper)
        self._objective = workload.objective(replica.rows, joint=False)
        self._passes = 1 + BACKWARD
        if settings.method in ZEROTH_ORDER:
            self._passes = passes(settings.directions, settings.scheme or "forward")

    def round(self) -> Round:
        """Runs the next round.

        The sampled clients, and so their batches, are those of a hiso run with the same seed.

        Raises:
            NonFiniteLoss: A loss is NaN or infinite; the global weights are unchanged.
        """
        s, replica, started, clock = self._settings, self.replica, time.perf_counter(), Clock()
        round = replica.position
        clients = choose(s.seed, "sample", round, 0, size=s.clients, count=s.sample)
        updates = [self._update(client, round, clock) for client in clients]
        loss = float(np.average([u.loss for u in updates], weights=[u.examples for u in updates]))
        now = by_name(replica, replica.weights)
        fresh, flat = self.server.aggregate(round, now, updates), replica.weights.clone()
        for name, view in by_name(replica, flat).items():
            view.copy_(torch.from_numpy(fresh[name]))
        self._move_to(round + 1, flat)
        size = SCALAR_BYTES * replica.numel * len(clients)
        return Round(
            round=round,
            loss=loss,
            clients=clients,
            bytes_up=size,
            bytes_down=size,
            passes=len(clients) * s.local_steps * self._passes,
            seconds=time.perf_counter() - started,
            forward_seconds=clock.seconds,
        )

    def measure(self, split: str, count: int | None, observer: Observer) -> dict[str, float]:
        """Metrics of the global weights; see `measure_split`."""
        return measure_split(self.workload, self.replica, self._objective, split, count, observer)

    def restore(
        self, position: int, weights: torch.Tensor, state: Mapping[str, NDArray[np.float32]]
    ) -> None:
        """Restores weights and the server's state at `position`."""
        self._move_to(position, weights)
        self.server.restore(state)

    def _move_to(self, position: int, weights: torch.Tensor) -> None:
        self.replica.restore({"weights": weights}, position, b"", self.replica.hyper)

    def _update(self, client: int, round: int, clock: Clock) -> Update:
        s, shard = self._settings, self.workload.shards[client]
        weight = 1 if s.weighting == "plain" else shard.examples
        if s.method in ZEROTH_ORDER:
            return search(
                self.replica,
                self._objective,
                shard,
                client,
                round=round,
                steps=s.local_steps,
                directions=s.directions,
                mu=float(s.mu),
                scheme=s.scheme or "forward",
                weight=weight,
                clock=clock,
            )
        return descend(
            self.replica,
            self._objective,
            shard,
            client,
            round=round,
            steps=s.local_steps,
            lr=s.hyper["lr"],
            weight=weight,
            clock=clock,
        )
