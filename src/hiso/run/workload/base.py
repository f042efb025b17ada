"""What a run works on: a module, its losses, the clients' shards, the splits, the identity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.identity import Identity
from hiso.core.keys import choose
from hiso.core.measure.outcome import Outcome, log_shares
from hiso.core.replica.replica import Memory, Replica
from hiso.data.batches import Batch, Shard
from hiso.errors import Diverged, SettingsError
from hiso.run.observer import Advance, Observer
from hiso.run.settings import Settings

Rows = Callable[[nn.Parameter, Tensor], Tensor]
EVAL_BATCH = 32


class Objective(Protocol):
    """What a module makes of batches of a workload, at whatever weights the module has."""

    def __call__(self, batches: Sequence[Any]) -> list[Outcome]:
        """The outcome of each batch, by forward passes alone."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of one batch, a scalar through which gradients flow."""
        ...


class Workload(Protocol):
    """All that is loaded before the first round."""

    @property
    def module(self) -> nn.Module:
        """The model, in eval mode."""
        ...

    @property
    def labels(self) -> int:
        """How many labels the task has; 0 for none."""
        ...

    @property
    def shards(self) -> Sequence[Shard[Any]]:
        """Each client's private examples; of one client alone, where they are its own."""
        ...

    @property
    def dev(self) -> Sequence[Any]:
        """Tuning examples."""
        ...

    @property
    def test(self) -> Sequence[Any]:
        """Reporting examples."""
        ...

    @property
    def source(self) -> str:
        """Where the data came from, in words."""
        ...

    @property
    def identity(self) -> Identity:
        """What makes the run this run: with equal identities and settings, digests are equal.

        Paths and names of machines are not in it, fingerprints are.
        """
        ...

    def objective(self, rows: Rows, *, joint: bool) -> Objective:
        """Losses at the module's weights; see `Replica.rows`.

        Args:
            rows: float32 rows of a parameter as it stands.
            joint: Put all batches through one forward pass.
        """
        ...

    def evaluate(
        self,
        objective: Any,
        examples: Sequence[Any],
        biases: NDArray[np.float64] | None,
        advance: Advance,
    ) -> dict[str, float]:
        """Metrics over `examples` at the module's weights.

        Args:
            objective: The workload's objective.
            examples: On what.
            biases: Added to the scores of the labels, float64 [C]; None for nothing.
            advance: Told of examples done.
        """
        ...


def adjustments(settings: Settings, workload: Workload) -> dict[int, NDArray[np.float64]]:
    """What each client adds to the scores of labels, where the settings ask for it."""
    if not settings.logit_adjustment:
        return {}
    return {
        shard.client: log_shares([e.label for e in shard.encoded], workload.labels)
        for shard in workload.shards
    }


def make_replica(
    identity: Identity, workload: Workload, memory: Memory, observer: Observer
) -> Replica:
    """The base model at position 0 of the run with this identity.

    Raises:
        SettingsError: Memory is lean, and the model reads a parameter of one of its modules
            without calling it.
    """
    with observer.phase("preparing kernels"):
        replica = Replica(workload.module, identity, memory=memory)
        if memory == "lean":
            _check_lean(workload, replica)
        return replica


def _check_lean(workload: Workload, replica: Replica) -> None:
    """One example through the model, whose parameters exist while their module runs."""
    replica.write()
    shard = workload.shards[0]
    objective = workload.objective(replica.rows, joint=False)
    try:
        objective([Batch(shard.client, tuple(shard.encoded[:1]))])
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise SettingsError(
            "memory = lean: the model reads parameters of one of its modules without calling it "
            f"({error}). Set memory = full."
        ) from error


def measure_split(
    workload: Workload,
    replica: Replica,
    objective: Objective,
    split: str,
    count: int | None,
    observer: Observer,
) -> dict[str, float]:
    """Metrics of a replica where it stands.

    Args:
        workload: Whose examples.
        replica: The replica, on the workload's module.
        objective: The workload's objective.
        split: "test", "dev", or "client 0" and so on for examples that a client trains on.
        count: Examples of a client; None for all.
        observer: Who watches.

    Raises:
        Diverged: One is not finite.
    """
    if split.startswith("client "):
        examples = own_examples(workload, int(split.split()[1]), count)
    else:
        examples = {"test": workload.test, "dev": workload.dev}[split]
    replica.write()
    with observer.phase(f"evaluating on {split}", len(examples)) as advance:
        metrics = workload.evaluate(objective, examples, replica.biases, advance)
    odd = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if odd:
        raise Diverged(f"at position {replica.position}, {' and '.join(odd)} on the {split} split.")
    return metrics


def own_examples(workload: Workload, client: int, count: int | None) -> Sequence[Any]:
    """The same `count` training examples of a client for every run, or all.

    Raises:
        SettingsError: There is no such client here.
    """
    by_client = {shard.client: shard for shard in workload.shards}
    if client not in by_client:
        known = f"{min(by_client)} to {max(by_client)}"
        raise SettingsError(f"there is no client {client}: clients are {known}")
    return some(by_client[client].encoded, count, client)


def some(examples: Sequence[Any], count: int | None, *coordinates: int) -> Sequence[Any]:
    """The same `count` examples for every run, or all."""
    if count is None or count >= len(examples):
        return examples
    return [
        examples[i] for i in choose(0, "evaluate", *coordinates, size=len(examples), count=count)
    ]


def device_of(settings: Settings) -> torch.device:
    """Where the model is to run.

    Raises:
        SettingsError: There is no such device here.
    """
    found, name = torch.cuda.is_available(), settings.device
    if name == "cuda" and not found:
        raise SettingsError(
            f"device = cuda, but torch {torch.__version__} sees no CUDA GPU here (`hiso doctor` "
            "shows what it sees). Set device = auto or cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda" if found and name != "cpu" else "cpu")
