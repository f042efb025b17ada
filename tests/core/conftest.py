"""Small models, records and replicas for the core's tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.method.base import Method
from hiso.core.record import Record
from hiso.core.replica.replica import Replica

from ..identities import identity_of


class TinyNet(nn.Module):
    """Odd sizes, a tied weight, a frozen parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.embed = nn.Parameter(torch.randn(61, 37, generator=generator) * 0.3)
        self.body = nn.Parameter(torch.randn(37, 37, generator=generator) * 0.2)
        self.head = self.embed
        self.frozen = nn.Parameter(torch.ones(37), requires_grad=False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.dropout(self.embed[ids] * self.frozen.to(self.embed.dtype))
        return torch.tanh(x @ self.body) @ self.head.T * self.scale


@pytest.fixture
def tiny() -> TinyNet:
    return TinyNet()


def make_record(
    rng: np.random.Generator,
    method: Method,
    round: int,
    *,
    steps: int = 1,
    directions: int = 5,
    streams: tuple[int, ...] = (0,),
    scale: float = 0.3,
    changes: dict[str, float] | None = None,
) -> Record:
    per_step = directions * len(streams)
    count = steps * per_step
    return Record(
        round,
        np.repeat(np.arange(steps), per_step).astype(np.uint16),
        np.tile(np.repeat(streams, directions), steps).astype(np.uint32),
        np.tile(np.arange(directions), steps * len(streams)).astype(np.uint16),
        (rng.standard_normal(count) * scale).astype(np.float32),
        (rng.standard_normal(count) * 3).astype(np.float32) if method.measures_curvature else None,
        changes or {},
        {name: float(rng.uniform(0.5, 2)) for name in method.facts},
    )


def make_replica(method: Method, backend: str = "numba", **arguments) -> Replica:
    memory = arguments.pop("memory", "full")
    identity = identity_of(method, **{"seed": 2**63 + 12345, **arguments})
    return Replica(TinyNet(), identity, backend=backend, memory=memory)
