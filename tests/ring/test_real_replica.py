"""The same machinery on the core's replica: nothing of the stand-in is special."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from hiso.core.method.registry import HiSo, HiZoo, ZoSgd
from hiso.core.replica.replica import Replica
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Closed, Server

from .standin import StandInShard, new_ledger


def make(ledger: Ledger) -> Replica:
    module = nn.Linear(4, 1)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.1, -0.2, 0.3, 0.0]]))
        module.bias.zero_()
    return Replica(module, ledger.identity, backend="reference")


def client_of(index: int, replica: Replica) -> Client:
    x = torch.arange(64, dtype=torch.float32).reshape(16, 4).sin()
    y = x @ torch.tensor([1.0, -1.0, 2.0, 0.5]) + index / 10

    @torch.no_grad()
    def losses(batches):
        return [((replica.module(x)[:, 0] - y) ** 2).mean() for _ in batches]

    return Client(index, StandInShard(index, 5), replica, losses)


@pytest.mark.parametrize("per_client", [False, True])
@pytest.mark.parametrize(
    "method", [ZoSgd(lr=0.02), HiSo(lr=0.02), HiZoo(lr=0.02)], ids=lambda m: m.name
)
def test_a_federation_of_replicas(tmp_path, method, per_client):
    with new_ledger(tmp_path / "ledger.db", method) as ledger:
        clients = [client_of(i, make(ledger)) for i in range(4)]
        rules = RoundSettings(
            clients=4, sample=3, steps=1, directions=3, mu=1e-2, per_client=per_client
        )
        server = Server(ledger, rules)
        for r in range(12):
            if r == 6:
                server.settings = replace(rules, directions=2, hyper={"lr": 0.01})
            for plan in server.ask():
                if plan.client != 3 or r > 8:  # client 3 joins late
                    assert server.tell(clients[plan.client].answer(plan)).accepted
            closed = server.close()
            assert isinstance(closed, Closed)
            assert closed.set_aside == {}
        witness = make(ledger)
        for r, record in enumerate(ledger.records()):
            assert (witness.digest(), witness.chain) == (ledger.digest_at(r), ledger.chain_at(r))
            witness.replay([record])
        assert ledger.losses()[-1] < ledger.losses()[0]
        assert witness.hyper["lr"] == server.hyper["lr"]
