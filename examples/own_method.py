"""A method of your own: Lion's idea, the sign of a smoothed step with weight decay.

It trains the same small network on the same data as HiSo; docs/methods.md explains the pieces.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import hiso
from hiso.core.method.base import Values
from hiso.core.method.ops import Value, sign


@dataclass(frozen=True, kw_only=True)
class Lion(hiso.Method):
    """m <- beta·m + (1 - beta)·dx;  w <- w - lr·(sign(m) + decay·w)."""

    name: ClassVar[str] = "lion"
    step_state: ClassVar[dict[str, float]] = {"m": 0.0}

    beta: float = 0.9
    decay: float = 0.0

    def step(self, w: Value, state: Values, dx: Value, hyper: Values) -> tuple[Value, Values]:
        m = hyper["beta"] * state["m"] + (1.0 - hyper["beta"]) * dx
        return w - hyper["lr"] * (sign(m) + hyper["decay"] * w), {"m": m}


def network() -> nn.Module:
    """The base model: the same weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 2))


def clients() -> list[TensorDataset]:
    """Six data holders with 100 examples each."""
    torch.manual_seed(1)
    x = torch.randn(6, 100, 20)
    y = (x[..., 0] + x[..., 1] > 0).long()
    return [TensorDataset(*pair) for pair in zip(x, y, strict=True)]


def train(method: hiso.Method) -> list[float]:
    """The loss of each of 100 rounds."""
    with hiso.Federation(
        network(),
        method,
        loss=lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        shards=clients(),
        batch_size=32,
        sample=2,
        directions=5,
        mu=1e-3,
    ) as fed:
        return [r.loss for r in fed.rounds(100) if r.loss is not None]


def main() -> None:
    """Prints the mean loss of the last ten rounds."""
    for method in (Lion(lr=3e-3, decay=0.01), hiso.HiSo(lr=2e-2)):
        losses = train(method)
        print(f"{method.name:10} {losses[0]:.3f} -> {sum(losses[-10:]) / 10:.3f}")


if __name__ == "__main__":
    main()
