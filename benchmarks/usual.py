"""How HiSo is usually done, written plainly, and hiso's rounds against it.

    python benchmarks/usual.py [--json]

One model per client, a snapshot to return to, `torch.randn` for a direction each time it is
needed, and ±mu·z in place. Passes over all weights in one round with P directions:

    each sampled client   P perturbations, P restorations, P parts of the local step,
                          each: draw z, read H, read and write w; then a copy from the snapshot
                          P parts of the common step, likewise; then a copy into the snapshot
    the server            P draws for the curvature, one read and write of H

Honest tuning: the buffer for draws is allocated once, √H is kept from round to round, updates are
single fused operations, and the loss, the batches and the joint label-word logits are hiso's own.
What is left out is in its favour: catching up after rounds without being sampled, and the extra
forward pass with which the public code logs a training loss.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from timing import interleaved, report
from torch import Tensor, nn

from hiso import HiSo, Replica
from hiso.core.keys import choose
from hiso.engines.simulation import Simulation
from hiso.federation.ledger import Ledger
from hiso.federation.server import Server
from hiso.federation.settings import RoundSettings
from hiso.language.models import LanguageModel
from hiso.language.objective import Objective
from hiso.run.observer import Silent
from hiso.run.settings import Settings
from hiso.run.workload import Workload, load_workload

CLIENTS, SAMPLE, DIRECTIONS, MU, ROUNDS = 6, 2, 5, 1e-3, 2

Loss = Callable[[nn.Module, int], float]
"""The loss of a client's batch under its own model."""


class UsualHiSo:
    """Parameter by parameter, in place, as a reader of the paper would write it first."""

    def __init__(
        self, module: nn.Module, clients: int, *, directions: int, lr: float, mu: float, nu: float
    ) -> None:
        self.models = [copy.deepcopy(module) for _ in range(clients)]
        self.snapshots = [[p.detach().clone() for p in m.parameters()] for m in self.models]
        self.roots = [torch.ones_like(p) for p in module.parameters()]
        self.directions, self.lr, self.mu, self.nu = directions, lr, mu, nu
        self._draw = torch.empty(max(p.numel() for p in module.parameters()))

    def _move(self, model: nn.Module, seed: int, scale: float) -> None:
        """w += scale · u/√H for the direction of `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for parameter, root in zip(model.parameters(), self.roots, strict=True):
            parameter.addcdiv_(self._normal(parameter, generator), root, value=scale)

    def _normal(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return self._draw[: like.numel()].view(like.shape).normal_(generator=generator)

    @torch.no_grad()
    def round(self, number: int, sampled: Sequence[int], loss: Loss) -> None:
        """One round of the sampled clients."""
        seeds = [number * self.directions + p for p in range(self.directions)]
        mean = [0.0] * self.directions
        for client in sampled:
            model = self.models[client]
            base = loss(model, client)
            scalars: list[float] = []
            for seed in seeds:
                self._move(model, seed, self.mu)
                scalars.append((loss(model, client) - base) / self.mu)
                self._move(model, seed, -self.mu)
            for seed, g in zip(seeds, scalars, strict=True):
                self._move(model, seed, -self.lr * g / self.directions)
            mean = [a + g / len(sampled) for a, g in zip(mean, scalars, strict=True)]
            for parameter, kept in zip(model.parameters(), self.snapshots[client], strict=True):
                parameter.copy_(kept)
        for client in sampled:
            for seed, g in zip(seeds, mean, strict=True):
                self._move(self.models[client], seed, -self.lr * g / self.directions)
            for parameter, kept in zip(
                self.models[client].parameters(), self.snapshots[client], strict=True
            ):
                kept.copy_(parameter)
        self._learn(seeds, mean)

    def _learn(self, seeds: Sequence[int], mean: Sequence[float]) -> None:
        steps = [torch.zeros_like(root) for root in self.roots]
        for seed, g in zip(seeds, mean, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for step in steps:
                step.add_(self._normal(step, generator), alpha=g / self.directions)
        for root, step in zip(self.roots, steps, strict=True):
            step.div_(root)
            root.square_().mul_(1 - self.nu).add_(step.square_(), alpha=self.nu).sqrt_()


def usual_round(workload: Workload, method: HiSo) -> Callable[[], None]:
    """Rounds of the usual implementation, one after another, on hiso's batches."""
    usual = UsualHiSo(
        workload.lm.model, CLIENTS, directions=DIRECTIONS, lr=method.lr, mu=MU, nu=method.nu
    )
    lm = workload.lm
    objectives = [
        Objective(LanguageModel(m, lm.tokenizer, lm.name, ""), workload.task) for m in usual.models
    ]
    number = iter(range(10**6))

    def run() -> None:
        at = next(number)

        def loss(_: nn.Module, client: int) -> float:
            return objectives[client]([workload.shards[client].batch(at, 0)])[0]

        usual.round(at, choose(0, "sample", at, 0, size=CLIENTS, count=SAMPLE), loss)

    return run


def main() -> None:
    method = HiSo()
    workload = load_workload(Settings(clients=CLIENTS, sample=SAMPLE), method, Silent())
    usual = usual_round(workload, method)
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger.create(Path(folder) / "ledger.sqlite", workload.identity, {}) as ledger,
    ):
        replica = Replica(workload.lm.model, method, seed=0, chain=ledger.root)
        objective = Objective(workload.lm, workload.task, rows=replica.rows)
        rounds = RoundSettings(
            clients=CLIENTS, sample=SAMPLE, steps=1, directions=DIRECTIONS, mu=MU
        )
        server = Server(ledger, rounds, curvature=False)
        simulation = Simulation(server, replica, workload.shards, objective)
        seconds = interleaved({"usual": usual, "hiso": simulation.round}, ROUNDS)
    report(
        "usual",
        {
            "usual: seconds a round": seconds["usual"],
            "hiso: seconds a round": seconds["hiso"],
            "rounds_over_usual.float32": seconds["usual"] / seconds["hiso"],
        },
    )


if __name__ == "__main__":
    main()
