"""A late joiner: whoever has the base model and the ledger has the trained model, bit for bit.

Run it twice: the second time there is nothing left to train.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import hiso

LEDGER = "late_joiner.sqlite"


def network() -> nn.Module:
    """The base model, which everybody has."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 2))


def clients() -> list[TensorDataset]:
    """The data, which stay where they are."""
    torch.manual_seed(1)
    x = torch.randn(6, 100, 20)
    y = (x[..., 0] + x[..., 1] > 0).long()
    return [TensorDataset(*pair) for pair in zip(x, y, strict=True)]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean loss of a batch."""
    return cross_entropy(model(batch[0]), batch[1])


def main() -> None:
    """Trains, and joins late."""
    with hiso.Federation(
        network(),
        hiso.HiSo(lr=2e-2),
        loss=loss,
        shards=clients(),
        batch_size=32,
        sample=2,
        directions=5,
        mu=1e-3,
        ledger=LEDGER,
    ) as fed:
        for r in fed.rounds(100):
            if r.number % 20 == 0:
                print(f"round {r.number}: loss {r.loss:.3f}, clients {r.clients}")
    print(f"trained   {fed.digest:016x}")

    late = hiso.replay(LEDGER, network())
    print(f"late      {late.digest():016x}")
    assert late.digest() == fed.digest
    half = hiso.replay(LEDGER, network(), position=50)
    print(f"halfway   {half.digest():016x}, {half.numel:,} weights from a log of scalars")


if __name__ == "__main__":
    main()
