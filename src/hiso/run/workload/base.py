"""The workload of a run: a module, its losses, the clients' shards, the splits, the identity."""

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
from hiso.core.replica.replica import DTYPES, Memory, Replica
from hiso.data.batches import Batch, Shard
from hiso.errors import Diverged, SettingsError
from hiso.ring.passes import AtPoints
from hiso.run.observer import Advance, Observer
from hiso.run.settings import Settings

Rows = Callable[[nn.Parameter, Tensor], Tensor]
EVAL_BATCH = 32


class Objective(Protocol):
    """Evaluates a module on batches of a workload, with the module's present weights."""

    def __call__(self, batches: Sequence[Any]) -> list[Outcome]:
        """The outcome of each batch, by forward passes only."""
        ...

    @property
    def at_points(self) -> AtPoints | None:
        """Measures several points in one forward pass; None if the kind of model cannot."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """The mean loss of one batch, a scalar with a gradient."""
        ...


class Workload(Protocol):
    """Everything that is loaded before the first round."""

    @property
    def module(self) -> nn.Module:
        """The model, in eval mode."""
        ...

    @property
    def labels(self) -> int:
        """Number of labels of the task; 0 for none."""
        ...

    @property
    def shards(self) -> Sequence[Shard[Any]]:
        """Each client's private examples; at a site with its own data, only those of one client."""
        ...

    @property
    def dev(self) -> Sequence[Any]:
        """Tuning examples."""
        ...

    @property
    def test(self) -> Sequence[Any]:
        """Test examples."""
        ...

    @property
    def source(self) -> str:
        """A description of the source of the data."""
        ...

    @property
    def identity(self) -> Identity:
        """The run's identity: with equal identities and settings, digests are equal.

        It holds fingerprints, but no paths or names of machines.
        """
        ...

    def objective(self, rows: Rows, *, joint: bool) -> Objective:
        """Losses at the module's weights; see `Replica.rows`.

        Args:
            rows: Returns float32 rows of a parameter with its present values.
            joint: Whether all batches share one forward pass.
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
            examples: The examples.
            biases: Added to the labels' scores, float64 [C]; None for nothing.
            advance: Called with the number of finished examples.
        """
        ...


def adjustments(settings: Settings, workload: Workload) -> dict[int, NDArray[np.float64]]:
    """The logit adjustment of each client, if the settings ask for it."""
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

    What is frozen is cast to the precision of forward passes.

    Raises:
        SettingsError: Memory is lean, and the model reads a parameter of one of its modules
            without calling this module.
    """
    for parameter in workload.module.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():  # not where quantised
            parameter.data = parameter.data.to(DTYPES[identity.dtype])
    with observer.phase("preparing kernels"):
        replica = Replica(workload.module, identity, memory=memory)
        if memory == "lean":
            _check_lean(workload, replica)
        return replica


def _check_lean(workload: Workload, replica: Replica) -> None:
    """Runs one example through the model with lean memory, to check that it works."""
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
    """Metrics of a replica at its present position.

    Args:
        workload: The workload with the examples.
        replica: The replica, on the workload's module.
        objective: The workload's objective.
        split: "test", "dev", or "client 0" and so on for training examples of a client.
        count: Number of examples of a client; None for all.
        observer: Receives the progress.

    Raises:
        Diverged: A metric is not finite.
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
    """`count` training examples of a client, or all; the same examples in every run.

    Raises:
        SettingsError: There is no such client.
    """
    by_client = {shard.client: shard for shard in workload.shards}
    if client not in by_client:
        known = f"{min(by_client)} to {max(by_client)}"
        raise SettingsError(f"there is no client {client}: clients are {known}")
    return some(by_client[client].encoded, count, client)


def some(examples: Sequence[Any], count: int | None, *coordinates: int) -> Sequence[Any]:
    """`count` examples, or all; the same examples in every run."""
    if count is None or count >= len(examples):
        return examples
    return [
        examples[i] for i in choose(0, "evaluate", *coordinates, size=len(examples), count=count)
    ]


def device_of(settings: Settings) -> torch.device:
    """The device of the model.

    Raises:
        SettingsError: This machine has no such device.
    """
    found, name = torch.cuda.is_available(), settings.device
    if name == "cuda" and not found:
        raise SettingsError(
            f"device = cuda, but torch {torch.__version__} sees no CUDA GPU here (`hiso doctor` "
            "shows what it sees). Set device = auto or cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda" if found and name != "cpu" else "cpu")
