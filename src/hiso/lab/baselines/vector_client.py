"""The clients' side of a baseline: local steps from the global weights, with or without gradients.

All clients use one module in turn. It stays in eval mode (no dropout), as in hiso's own runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Probe, Scheme
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Shard
from hiso.errors import NonFiniteLoss
from hiso.lab.baselines.vector_server import Update, by_name, pack
from hiso.ring.passes import measure, take_step
from hiso.run.workload.base import Objective


class Clock:
    """Wall time of passes through the model.

    Attributes:
        seconds: The time so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began


def descend(
    replica: Replica,
    objective: Objective,
    shard: Shard,
    client: int,
    *,
    round: int,
    steps: int,
    lr: float,
    weight: int,
    clock: Clock,
) -> Update:
    """τ steps of SGD, w ← w − lr·∇f(w; ξ_k), one batch ξ_k each, by torch's autograd.

    The steps change the module's parameters (the replica's copy); the replica's w is unchanged.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
    """
    parameters = [p for p in replica.module.parameters() if p.requires_grad]
    losses: list[float] = []
    with replica.lend():
        for step in range(steps):
            batch = shard.batch(round, step)
            with clock:
                loss = objective.loss(batch)
                losses.append(float(loss.detach()))
                if not math.isfinite(losses[-1]):
                    raise NonFiniteLoss(
                        f"the loss is {losses[-1]} for client {client} in round {round}, local "
                        f"step {step}",
                        round=round,
                        client=client,
                    )
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(gradient, alpha=lr)
        known = dict(replica.module.named_parameters())
        moved = pack({entry.name: known[entry.name] for entry in replica.layout})
    return Update(client, moved, weight, losses[0])


def search(
    replica: Replica,
    objective: Objective,
    shard: Shard,
    client: int,
    *,
    round: int,
    steps: int,
    directions: int,
    mu: float,
    scheme: Scheme,
    weight: int,
    clock: Clock,
) -> Update:
    """τ steps w ← w − lr · (1/P) Σ_p g_p·u_p along the client's own P directions of each step.

    g_p is the difference quotient measured by hiso's probe, u_p is hiso's noise with stream
    client + 1, and lr is that of the replica's method, `zo_sgd`.

    Source: FedZO, Fang et al. (2022). Deviation: the source draws v on the unit sphere and takes
    d·[f(x + μ'v) − f(x)]/μ' · v. With v = u/√d and μ' = μ·√d this is the same step, except that
    |u| is not exactly √d.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
    """

    def losses(batches: Sequence[Any]) -> list[Outcome]:
        with clock:
            return objective(batches)

    probe = Probe(
        client=client,
        round=round,
        steps=steps,
        directions=directions,
        mu=mu,
        scheme=scheme,
        stream=client + 1,
    )
    measure(replica, probe, lambda step: shard.batch(round, step), losses)
    walk = replica.walk()
    for step in range(steps):
        take_step(walk, probe, step)
    return Update(client, pack(by_name(replica, walk.weights)), weight, probe.loss)
