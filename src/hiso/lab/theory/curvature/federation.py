"""A run on digits with a log, and replicas at positions of the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.noise.layout import Layout
from hiso.core.replica.replica import Replica
from hiso.data.batches import Shard
from hiso.engines.simulation import Simulation
from hiso.lab.theory.curvature import images
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.observer import Observer


@dataclass(frozen=True)
class Federation:
    """The parts of a run on digits.

    Attributes:
        rules: Clients, sampling, directions, mu.
        method: The method with its hyper-parameters.
        inputs: Training images.
        labels: Labels of the training images.
        batch_size: Images in a client's batch.
        seed: Key of network, directions, sampling and batches.
        start: Initial weights, [d]; None for those of the seed's network.
    """

    rules: RoundSettings
    method: Method
    inputs: Tensor
    labels: Tensor
    batch_size: int
    seed: int
    start: Tensor | None = None

    def module(self) -> nn.Module:
        """The network before the first round."""
        module = images.network(self.seed)
        if self.start is not None:
            nn.utils.vector_to_parameters(self.start.float(), module.parameters())
        return module

    def shards(self) -> list[Shard[int]]:
        """Each client's images."""
        return images.shards(len(self.labels), self.rules.clients, self.batch_size, self.seed)

    @property
    def identity(self) -> Identity:
        """The identity of the run."""
        return Identity(method=self.method, seed=self.seed, model="digits")

    def replica(self, seed: int | None = None) -> Replica:
        """A replica at position 0, with the directions of `seed`, by default the run's seed."""
        own = self.seed if seed is None else seed
        return Replica(self.module(), replace(self.identity, seed=own))

    @contextmanager
    def ledger(self, path: Path) -> Iterator[Ledger]:
        """The run's log, created if it does not exist."""
        opened = Ledger.open(path) if path.exists() else Ledger.create(path, self.identity, {})
        with opened as ledger:
            yield ledger

    def simulation(self, ledger: Ledger) -> Simulation:
        """The federation at the end of the log."""
        replica = self.replica()
        server = Server(ledger, self.rules)
        losses = images.Losses(replica.module, self.inputs, self.labels)
        return Simulation(server, replica, self.shards(), losses)

    def run(self, path: Path, rounds: int, observer: Observer, title: str) -> None:
        """Runs the rounds that the log lacks."""
        with self.ledger(path) as ledger:
            simulation = self.simulation(ledger)
            with observer.phase(title, rounds) as advance:
                advance(ledger.position)
                while ledger.position < rounds:
                    simulation.round()
                    advance(1)

    def batch_rows(self, ledger: Ledger, rounds: int) -> list[list[Sequence[int]]]:
        """The rows of each client's batch in the last `rounds` rounds of the log."""
        parts = self.shards()
        rows = ledger.rounds(max(0, ledger.position - rounds))
        return [
            [parts[client].batch(row.round, 0).examples for client in row.clients] for row in rows
        ]


def unpadded(layout: Layout, buffer: Tensor) -> Tensor:
    """The weights [d] in a replica's flat buffer, without the padding between parameters."""
    return torch.cat([buffer[e.offset : e.offset + e.numel] for e in layout])


def set_state(replica: Replica, name: str, values: Tensor) -> None:
    """Sets a state [d] of a replica directly, without records; `unpadded` reads it back."""
    buffers = {"weights": replica.weights, **replica.state, name: replica.state[name].clone()}
    parts = values.split([entry.numel for entry in replica.layout])
    for entry, part in zip(replica.layout, parts, strict=True):
        buffers[name][entry.offset : entry.offset + entry.numel] = part
    replica.restore(buffers, replica.position, replica.chain, replica.hyper)


def state_at(
    federation: Federation, ledger: Ledger, position: int, *, seed: int | None = None
) -> tuple[Tensor, NDArray[np.float64]]:
    """Weights and h, [d] each, before the record of `position`, by replay.

    With another `seed` the scalars of the log are combined with directions that are unrelated to
    the measured losses: h then has the same spread, but contains no information.
    """
    replica = federation.replica(seed)
    replica.replay(ledger.records(0, position))
    h = unpadded(replica.layout, replica.state["h"]).double().numpy()
    return unpadded(replica.layout, replica.weights), h
