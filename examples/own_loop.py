"""A loop of your own: what an engine does, with a replica for each client.

The server asks, clients answer, the server is told. Plans and replies may travel in any way you
like: here they go through bytes, as over a network, and one reply in ten is lost.
"""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import hiso
from hiso.ring.server import Aborted
from hiso.ring.wire import plan_from_bytes, plan_to_bytes, reply_from_bytes, reply_to_bytes

CLIENTS = 4


def network() -> nn.Module:
    """The base model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2))


def make_client(index: int, identity: hiso.Identity) -> hiso.Client:
    """A client with a replica and data of its own."""
    made = torch.Generator().manual_seed(index)
    x = torch.randn(100, 20, generator=made)
    data = TensorDataset(x, (x[:, 0] + x[:, 1] > 0).long())
    replica = hiso.Replica(network(), identity)

    @torch.no_grad()
    def losses(batches: Any) -> list[torch.Tensor]:
        return [cross_entropy(replica.module(x), y) for x, y in batches]

    shard = hiso.DataShard(data, client=index, batch_size=32, seed=identity.seed)
    return hiso.Client(index, shard, replica, losses)


def run(file: Path, rounds: int) -> None:
    """Runs rounds on a new ledger."""
    identity = hiso.Identity(
        method=hiso.HiSo(lr=2e-2), seed=0, clients=CLIENTS, batch_size=32, loss="cross-entropy, 1"
    )
    settings = hiso.RoundSettings(clients=CLIENTS, sample=2, steps=1, directions=5, mu=1e-3)
    clients = [make_client(index, identity) for index in range(CLIENTS)]
    chance = Random(0)
    with hiso.Ledger.create(file, identity, {}) as ledger:
        server = hiso.Server(ledger, settings)
        while ledger.position < rounds:
            for plan in server.ask():
                plan = plan_from_bytes(plan_to_bytes(plan))
                reply = reply_to_bytes(clients[plan.client].answer(plan))
                if chance.random() > 0.1:
                    server.tell(reply_from_bytes(reply))
            closed = server.close()
            if isinstance(closed, Aborted):
                print(f"round {closed.round} is tried again: {closed.reason}")
            elif closed.number % 20 == 0:
                print(f"round {closed.number}: loss {closed.loss:.3f} of clients {closed.clients}")
        up, down = ledger.traffic()
        print(f"{up} bytes of scalars up, {down} down")
        for client in clients:  # each stands where it was last asked: bring it to the end
            client.catch_up(server.rest(client.index, client.replica.position))
    digests = {client.replica.digest() for client in clients}
    print(f"{len(digests)} digest among {CLIENTS} clients")
    assert len(digests) == 1


def main() -> None:
    """Runs in a folder that is gone afterwards."""
    with TemporaryDirectory() as folder:
        run(Path(folder) / "ledger.sqlite", 100)


if __name__ == "__main__":
    main()
