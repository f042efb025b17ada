"""A tiny replica and tiny clients, exact and fast, for tests of the federation alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hiso.core.keys import raw_bits
from hiso.core.method import Method
from hiso.core.record import Record
from hiso.errors import ProtocolError
from hiso.federation.client import Client
from hiso.federation.ledger import Ledger
from hiso.federation.protocol import Plan, Reply
from hiso.federation.server import Aborted, Closed, Server

SIZE = 8


class Plain(Method):
    name = "plain"


class Curved(Method):
    name = "curved"
    curvature = True


def identity(method: Method, seed: int = 7) -> dict:
    return {"seed": seed, "method": {"name": method.name, "hyper": method.hyper}}


def new_ledger(path: Path, method: Method | None = None, seed: int = 7) -> Ledger:
    return Ledger.create(path, identity(method or Plain(lr=0.05), seed), {"rounds": 30})


def direction(round: int, step: int, stream: int, index: int) -> np.ndarray:
    bits = raw_bits(7, "standin", (round, step, stream, index), SIZE)
    return (bits % np.uint64(7)).astype(np.float32) - np.float32(3)


class StandIn:
    """A float32 vector folded by records: w -= lr * sum(c * u), κ entering as c * κ."""

    def __init__(self, root: bytes, method: Method) -> None:
        self.chain, self.method, self.position = root, method, 0
        self.hyper = {name: float(np.float32(value)) for name, value in method.hyper.items()}
        self.w = np.zeros(SIZE, np.float32)

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


def answer(client: Client, plan: Plan) -> Reply:
    """What an engine does: the client's loss is a quadratic around a point of its own."""
    probe = client.begin(plan)
    replica = client.replica
    assert isinstance(replica, StandIn)
    target = np.linspace(-1, 1, SIZE) + client.index / 10
    lr = (replica.hyper | plan.changes)["lr"]
    w, walked = replica.w.copy(), 0
    while (point := probe.ask()) is not None:
        if point.step > walked:
            for p, g in enumerate(probe.scalars[walked]):
                u = direction(plan.round, walked, plan.stream, p)
                w = w - np.float32(lr) * (g / np.float32(plan.directions)) * u
            walked = point.step
        u = direction(plan.round, point.step, point.stream, point.direction)
        x = w + np.float32(point.sign * probe.mu) * u
        probe.tell(float(np.mean((x.astype(np.float64) - target) ** 2)))
    return client.finish()


def clients_of(ledger: Ledger, count: int, method: Method | None = None) -> list[Client]:
    """Each with a replica of its own."""
    method = method or Plain(lr=0.05)
    return [Client(i, 10 * (i + 1), StandIn(ledger.root, method), ledger.run) for i in range(count)]


def one_round(
    server: Server, clients: Sequence[Client], silent: Iterable[int] = ()
) -> Closed | Aborted:
    for plan in server.ask():
        server.sent(plan.client)
        if plan.client not in silent:
            verdict = server.tell(answer(clients[plan.client], plan))
            assert verdict.accepted, verdict.reason
    return server.close({"probe": 0.5})


def log_bytes(ledger: Ledger) -> list[bytes]:
    return [record.to_bytes() for record in ledger.records()]
