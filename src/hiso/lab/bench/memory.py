"""Measures the peak memory of rounds, in bytes per trainable weight, by mode.

Each mode runs in its own process. The process imports everything and runs rounds of a tiny model,
so that kernels are compiled and libraries have allocated their memory; records its resident memory;
creates a model with random weights and a replica of it; and measures the peak of resident memory
over rounds. The figure is this peak above the recorded memory, divided by the number of trainable
weights.

malloc is told to return freed memory at once, so that the figure is the memory in use. By default
glibc keeps freed tensors of up to 32 MB for later use: we saw up to 0.8 bytes per weight after this
model was created, and up to 1.3 in total with lean memory, which often allocates and frees copies.

Activations are included. The batches are so short (16 tokens per client) that activations take
0.01 to 0.02 bytes per weight of SmolLM2-135M, whose shape the model has. Padding to tiles is also
included, 0.01 bytes per weight. With lean memory the figure includes the copy of the largest
module, here the embedding (21 % of the weights).

Creating the model needs additional memory: the peak of the process before the first round is
reported separately.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hiso.core.identity import Dtype, Identity
from hiso.core.method.registry import METHODS
from hiso.core.replica.replica import DTYPES, Memory, Replica
from hiso.engines.simulation import Simulation
from hiso.lab.bench.resident import keep_nothing, measurable, peak_of, resident
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.observer import Observer
from hiso.workloads.text.models import hidden_states, output_head

SMOLLM2: Mapping[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
"""The shape of SmolLM2-135M, as arguments of `LlamaConfig`. Embeddings are tied."""

_TINY: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_ROUNDS, _DIRECTIONS, _TOKENS = 3, 2, 16
_PROCESSES = 2


@dataclass(frozen=True)
class Mode:
    """The choices that determine the memory of a round."""

    memory: Memory
    method: str
    dtype: Dtype
    clients: int = 6

    def expected(self, largest: float) -> float:
        """Bytes per trainable weight by design; `largest` is the largest module's share."""
        copied = largest if self.memory == "lean" else 1.0
        states = len(METHODS[self.method]().state)
        return 4 + 4 * states + copied * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Held:
    """Peaks of resident memory above the process's own, in bytes per trainable weight.

    Attributes:
        rounds: During rounds.
        start: While the model is created and its parameters move into the replica.
        expected: During rounds, by design.
        weights: Number of trainable weights.
    """

    rounds: float
    start: float
    expected: float
    weights: int


MODES = tuple(
    Mode(memory, method, dtype)
    for memory in ("full", "lean")
    for method in ("hiso", "zo_sgd")
    for dtype in ("float32", "bfloat16")
)
MANY_CLIENTS = Mode("full", "hiso", "float32", clients=600)


def measure_memory(
    modes: Sequence[Mode], shape: Mapping[str, Any], observer: Observer
) -> list[Held] | None:
    """Memory of each mode, for a Llama of the given shape; None if it cannot be measured."""
    if not measurable():
        observer.notice("memory is not measured: this system has no peak that can be reset")
        return None
    held: list[Held] = []
    with (
        ProcessPoolExecutor(_PROCESSES, get_context("spawn"), max_tasks_per_child=1) as processes,
        observer.phase("measuring memory", len(modes)) as advance,
    ):
        for each in processes.map(_measure, modes, [dict(shape)] * len(modes)):
            held.append(each)
            advance(1)
    return held


def _measure(mode: Mode, shape: Mapping[str, Any]) -> Held:
    keep_nothing()
    with tempfile.TemporaryDirectory() as folder:
        warm = _federation(mode, _TINY, Path(folder) / "warm.sqlite")
        warm.round()
        warm.round()
        del warm
        gc.collect()
        own = resident()
        made: list[Simulation] = []
        start = peak_of(lambda: made.append(_federation(mode, shape, Path(folder) / "it.sqlite")))
        (simulation,) = made
        gc.collect()  # transformers makes a head, then ties it to the embedding
        peak = max(peak_of(simulation.round) for _ in range(_ROUNDS))
    replica = simulation.replica
    largest = max(entry.numel for entry in replica.layout) / replica.numel
    return Held(
        rounds=(peak - own) / replica.numel,
        start=(start - own) / replica.numel,
        expected=mode.expected(largest),
        weights=replica.numel,
    )


class _Shard:
    examples = 1

    def batch(self, round: int, step: int) -> Tensor:
        return torch.arange(_TOKENS)[None] + round + step


def _federation(mode: Mode, shape: Mapping[str, Any], path: Path) -> Simulation:
    """A federation of a random model; its loss reads two rows of the head, like label words."""
    from transformers import LlamaConfig, LlamaForCausalLM

    model: Any = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
    method = METHODS[mode.method]()
    identity = Identity(method=method, seed=0, dtype=mode.dtype)
    ledger = Ledger.create(path, identity, {})
    replica = Replica(model, identity, memory=mode.memory)
    rounds = RoundSettings(clients=mode.clients, sample=2, steps=1, directions=_DIRECTIONS, mu=5e-3)
    server = Server(ledger, rounds)
    shards = [_Shard() for _ in range(mode.clients)]
    return Simulation(server, replica, shards, _losses(model, replica))


def _losses(model: Any, replica: Replica) -> Callable[[Sequence[Tensor]], list[float]]:
    labels = torch.tensor([3, 50])

    @torch.inference_mode()
    def losses(batches: Sequence[Tensor]) -> list[float]:
        last = hidden_states(model, torch.cat(list(batches)))[:, -1].float()
        head: Any = output_head(model)
        rows = replica.rows(head.weight, labels)
        targets = torch.zeros(len(last), dtype=torch.long)
        logits = nn.functional.linear(last, rows)
        return nn.functional.cross_entropy(logits, targets, reduction="none").tolist()

    return losses
