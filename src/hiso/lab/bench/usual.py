"""HiSo as it is usually implemented, for comparison with the time of hiso's rounds.

One model per client, a snapshot to restore, `torch.randn` for a direction each time it is needed,
and ±mu·z in place. Passes over all weights in one round with P directions:

    each sampled client   P perturbations, P restorations, P parts of the local step,
                          each: draw z, read H, read and write w; then a copy from the snapshot
                          P parts of the common step, likewise; then a copy into the snapshot
    the server            P draws for the diagonal, one read and write of H

Reasonable optimisations: the buffer for draws is allocated once, √H is kept from round to round,
updates are single fused operations, and only the logits of the label words are computed. A
client's batch is padded to its longest example, as usual. Omissions that make it faster: catching
up after rounds in which a client was not sampled, and the extra forward pass with which the public
code logs a training loss.

In float32 this is what users of such code run on a CPU. In bfloat16 everything here is bfloat16,
including w. This is the fastest variant, but it does not train: a perturbation or a step is mostly
smaller than half a unit in the last place of w.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from hiso.core.keys import choose
from hiso.core.method.registry import HiSo
from hiso.data.batches import Batch
from hiso.errors import SettingsError
from hiso.ring.round_settings import RoundSettings
from hiso.run.workload.text import Words
from hiso.workloads.text.models import hidden_states, output_head
from hiso.workloads.text.verbalizer import check_labels

Loss = Callable[[nn.Module, int], float]
"""The loss of a client's batch under its own model."""


class UsualHiSo:
    """HiSo parameter by parameter, in place: a direct implementation of the paper."""

    def __init__(
        self, module: nn.Module, clients: int, *, directions: int, lr: float, mu: float, nu: float
    ) -> None:
        self.models = [copy.deepcopy(module) for _ in range(clients)]
        self.snapshots = [[p.detach().clone() for p in m.parameters()] for m in self.models]
        self.roots = [torch.ones_like(p) for p in module.parameters()]
        self.directions, self.lr, self.mu, self.nu = directions, lr, mu, nu
        largest = max(module.parameters(), key=torch.numel)
        self._draw = torch.empty_like(largest).view(-1)

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


def usual_loss(workload: Words) -> Callable[[Any, Batch], float]:
    """The mean cross-entropy of the label words, for a model and a batch padded to its longest."""
    if workload.lm.classes is not None:
        raise SettingsError(f"{workload.lm.name} is a classifier: name a causal language model.")
    words = torch.tensor(check_labels(workload.task, workload.lm.tokenizer).first)
    padding: Any = workload.lm.tokenizer.pad_token_id

    @torch.inference_mode()
    def loss(model: Any, batch: Batch) -> float:
        examples = batch.examples
        rows, last = range(len(examples)), [len(e.ids) - 1 for e in examples]
        ids = torch.full((len(examples), max(last) + 1), padding)
        for row, example in zip(ids, examples, strict=True):
            row[: len(example.ids)] = torch.from_numpy(example.ids)
        hidden = hidden_states(model, ids)[rows, last]
        logits = hidden @ output_head(model).weight[words].T
        targets = torch.tensor([e.label for e in examples])
        return float(nn.functional.cross_entropy(logits.float(), targets))

    return loss


def usual_round(
    workload: Words, module: nn.Module, method: HiSo, rounds: RoundSettings
) -> Callable[[], None]:
    """A function that runs the next round of the usual implementation, on hiso's batches.

    Args:
        workload: Shards, task and tokenizer.
        module: The model, in the dtype for all computations; it is copied.
        method: Learning rate and update rate of H.
        rounds: Clients, sample, P and mu.
    """
    usual = UsualHiSo(
        module,
        rounds.clients,
        directions=rounds.directions,
        lr=method.lr,
        mu=rounds.mu,
        nu=method.nu,
    )
    loss_of, numbers = usual_loss(workload), count()

    def run() -> None:
        at = next(numbers)

        def loss(model: nn.Module, client: int) -> float:
            return loss_of(model, workload.shards[client].batch(at, 0))

        sampled = choose(0, "sample", at, 0, size=rounds.clients, count=rounds.sample)
        usual.round(at, sampled, loss)

    return run
