"""What a run works on: the model, the task, the splits, the clients' shards, the identity."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hiso.core import record
from hiso.core.keys import choose
from hiso.core.method import Method
from hiso.core.noise import NOISE_FORMAT
from hiso.errors import SettingsError
from hiso.language.data import load_examples
from hiso.language.models import LanguageModel, load_model
from hiso.language.partition import partition
from hiso.language.shards import Encoded, Shard, encode
from hiso.language.task import Task
from hiso.language.tasks import get_task
from hiso.run.observer import Observer
from hiso.run.settings import Settings

EVAL_BATCH = 32


@dataclass(frozen=True)
class Workload:
    """All that is loaded before the first round.

    Attributes:
        lm: The model.
        task: The task.
        shards: Each client's private examples.
        dev: Tuning examples.
        test: Reporting examples.
        source: Where the data came from, in words.
        identity: What makes the run this run; two runs with equal identities and settings have
            equal digests. Paths and names of machines are not in it, fingerprints are.
    """

    lm: LanguageModel
    task: Task
    shards: list[Shard]
    dev: list[Encoded]
    test: list[Encoded]
    source: str
    identity: dict[str, Any]


def load_workload(settings: Settings, method: Method, observer: Observer) -> Workload:
    """Loads model and data.

    Raises:
        LoadError: Something cannot be loaded as asked.
        SettingsError: The data allow no such partition, or the texts no such length; or there
            is no such device.
    """
    task = get_task(settings.task)
    device = _device(settings.device)
    with observer.phase(f"loading data for {task.name}"):
        splits = load_examples(task, settings.data, group_column=settings.partition_column)
    with observer.phase(f"loading model {settings.model}"):
        lm = load_model(settings.model)
        lm.model.to(device)  # pyright: ignore[reportArgumentType]
    if lm.context is not None and settings.max_length > lm.context:
        raise SettingsError(
            f"max_length is {settings.max_length}, but {lm.name} reads no more than {lm.context} "
            f"tokens. Set max_length to {lm.context} or less."
        )
    with observer.phase("tokenising and partitioning"):
        dev, test = (
            _some(encode(examples, task, lm.tokenizer, settings.max_length), count)
            for examples, count in (
                (splits.dev, settings.dev_examples),
                (splits.test, settings.test_examples),
            )
        )
        train = encode(splits.train, task, lm.tokenizer, settings.max_length)
        column = [example.group for example in splits.train]
        parts = partition(
            splits.train,
            settings.clients,
            settings.partition,
            alpha=settings.alpha,
            column=column if settings.partition == "column" else None,
            seed=settings.seed,
        )
    shards = [
        Shard(client, [train[i] for i in part], settings.batch_size, settings.seed)
        for client, part in enumerate(parts)
    ]
    identity = {
        "formats": {"record": record.FORMAT, "noise": NOISE_FORMAT},
        "model": {"fingerprint": lm.fingerprint},
        "task": {"name": task.name, "template": task.template, "labels": list(task.labels)},
        "data": {"fingerprint": splits.fingerprint, "max_length": settings.max_length},
        "method": {"name": method.name, "hyper": method.hyper, "feed": method.feed},
        "noise": settings.noise,
        "seed": settings.seed,
        "clients": settings.clients,
        "partition": _fingerprint(parts),
        "batch_size": settings.batch_size,
        "directions": settings.directions,
        "dtype": settings.dtype,
        "joint": settings.joint,
    }
    return Workload(lm, task, shards, dev, test, splits.source, identity)


def _device(name: str) -> torch.device:
    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise SettingsError(
            f"device = cuda, but torch {torch.__version__} sees no CUDA GPU here (`hiso doctor` "
            "shows what it sees). Set device = auto or cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda" if found and name != "cpu" else "cpu")


def _some(examples: list[Encoded], count: int | None) -> list[Encoded]:
    """The same `count` examples for every run, or all."""
    if count is None or count >= len(examples):
        return examples
    return [examples[i] for i in choose(0, "evaluate", size=len(examples), count=count)]


def _fingerprint(parts: Sequence[Sequence[int]]) -> str:
    text = "\n".join(",".join(map(str, part)) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()
