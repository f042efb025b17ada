"""A tiny replica and tiny clients, exact and fast, for tests of the federation alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hiso.core.identity import Identity
from hiso.core.keys import raw_bits
from hiso.core.method.base import Method
from hiso.core.record import Record
from hiso.errors import ProtocolError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Aborted, Closed, Server

from ..identities import identity_of

SIZE = 8


class Plain(Method):
    name = "plain"


class Curved(Method):
    name = "curved"
    measures_curvature = True


def new_ledger(path: Path, method: Method | None = None, seed: int = 7) -> Ledger:
    return Ledger.create(path, identity_of(method or Plain(lr=0.05), seed=seed), {"rounds": 30})


def direction(round: int, step: int, stream: int, index: int) -> np.ndarray:
    bits = raw_bits(7, "standin", (round, step, stream, index), SIZE)
    return (bits % np.uint64(7)).astype(np.float32) - np.float32(3)


class StandIn:
    """A float32 vector folded by records: w -= lr * sum(c * u), κ entering as c * κ."""

    def __init__(self, identity: Identity) -> None:
        self.identity, self.chain, self.position = identity, identity.root, 0
        self.derived = identity.method.derived
        hyper = identity.method.hyper
        self.hyper = {name: float(np.float32(value)) for name, value in hyper.items()}
        self.w = np.zeros(SIZE, np.float32)
        self.x = self.w.astype(np.float64)  # what a model would read

    def digest(self) -> int:
        data = self.w.tobytes() + self.position.to_bytes(4, "little")
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

    def replay(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.round != self.position:
                raise ProtocolError(f"record {record.round} at position {self.position}")
            self.hyper |= record.changes
            for k in range(record.steps):
                at = np.flatnonzero(record.step == k)
                self.w = self.stepped(self.w, record, at, self.hyper["lr"])
            self.position += 1
            self.chain = record.chain(self.chain)

    @staticmethod
    def stepped(w: np.ndarray, record: Record, at: Iterable[int], lr: float) -> np.ndarray:
        s1 = np.zeros(SIZE, np.float32)
        for t in at:
            u = direction(
                record.round, int(record.step[t]), int(record.stream[t]), int(record.direction[t])
            )
            s1 += record.coefficient[t] * u
            if record.curvature is not None:
                s1 += record.curvature[t] * np.float32(1e-3)
        return w - np.float32(lr) * s1

    def write(self, point=None, *, mu=0.0, walk=None, changes=None) -> None:
        del changes
        x = self.w if walk is None else walk.w
        if point is not None and point.sign:
            u = direction(point.round, point.step, point.stream, point.direction)
            x = x + np.float32(point.sign * mu) * u
        self.x = x.astype(np.float64)

    def walk(self, changes=None) -> StandInWalk:
        return StandInWalk(self.w.copy(), ({**self.hyper, **(changes or {})})["lr"])

    def losses(self, batches: Sequence[int]) -> list[float]:
        """Of each client a quadratic around a point of its own."""
        targets = [np.linspace(-1, 1, SIZE) + client / 10 for client in batches]
        return [float(np.mean((self.x - target) ** 2)) for target in targets]


@dataclass
class StandInWalk:
    w: np.ndarray
    lr: float

    def step(self, *, round, step, stream, coefficients) -> None:
        for p, c in enumerate(coefficients):
            self.w = self.w - np.float32(self.lr) * c * direction(round, step, stream, p)


@dataclass(frozen=True)
class StandInShard:
    client: int
    examples: int

    def batch(self, round: int, step: int) -> int:
        return self.client


def client_of(index: int, replica: StandIn, examples: int | None = None) -> Client:
    count = 10 * (index + 1) if examples is None else examples
    return Client(index, StandInShard(index, count), replica, replica.losses)


def clients_of(ledger: Ledger, count: int) -> list[Client]:
    """Each with a replica of its own."""
    return [client_of(i, StandIn(ledger.identity)) for i in range(count)]


def one_round(
    server: Server, clients: Sequence[Client], silent: Iterable[int] = ()
) -> Closed | Aborted:
    for plan in server.ask():
        server.sent(plan.client)
        if plan.client not in silent:
            verdict = server.tell(clients[plan.client].answer(plan))
            assert verdict.accepted, verdict.reason
    return server.close({"probe": 0.5})


def log_bytes(ledger: Ledger) -> list[bytes]:
    return [record.to_bytes() for record in ledger.records()]
