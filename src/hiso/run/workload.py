"""What a run works on: the model, the task, the splits, the clients' shards, the identity."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hiso.core.keys import choose
from hiso.core.method import Method
from hiso.core.replica import DTYPES, Replica
from hiso.errors import SettingsError
from hiso.language.data import Example, load_examples
from hiso.language.models import LanguageModel, load_model
from hiso.language.partition import partition
from hiso.language.shards import Encoded, Shard, encode
from hiso.language.task import Task
from hiso.language.tasks import get_task
from hiso.run.identity import settings_identity
from hiso.run.observer import Observer
from hiso.run.settings import Settings

EVAL_BATCH = 32


@dataclass(frozen=True)
class Workload:
    """All that is loaded before the first round.

    Attributes:
        lm: The model.
        task: The task.
        shards: Each client's private examples; those of one client alone, where they are its own.
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


def load_workload(
    settings: Settings, method: Method, observer: Observer, *, own: int | None = None
) -> Workload:
    """Loads model and data.

    Args:
        settings: The settings.
        method: The method.
        observer: Who watches.
        own: The client whose data these are, all of them; by default they are divided among
            all clients.

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
        if own is None:
            parts = dict(enumerate(_divide(splits.train, settings)))
        else:
            parts = {own: range(len(train))}
    shards = [
        Shard(client, [train[i] for i in part], settings.batch_size, settings.seed)
        for client, part in parts.items()
    ]
    identity = settings_identity(settings, method) | {
        "model": {"fingerprint": lm.fingerprint},
        "task": {"name": task.name, "template": task.template, "labels": list(task.labels)},
        "data": {"fingerprint": splits.fingerprint, "max_length": settings.max_length},
        "partition": _fingerprint(list(parts.values())),
        "joint": settings.joint,
    }
    return Workload(lm, task, shards, dev, test, splits.source, identity)


def make_replica(
    settings: Settings,
    method: Method,
    start: Mapping[str, float],
    workload: Workload,
    observer: Observer,
) -> Replica:
    """The base model at position 0, with the hyper-parameters that the run began with."""
    with observer.phase("preparing kernels"):
        return Replica(
            workload.lm.model,
            replace(method, **start),
            seed=settings.seed,
            noise=settings.noise,
            dtype=DTYPES[settings.dtype],
            memory=settings.memory,
        )


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


def _divide(train: Sequence[Example], settings: Settings) -> Sequence[Sequence[int]]:
    column = [example.group for example in train]
    return partition(
        train,
        settings.clients,
        settings.partition,
        alpha=settings.alpha,
        column=column if settings.partition == "column" else None,
        seed=settings.seed,
    )


def _fingerprint(parts: Sequence[Sequence[int]]) -> str:
    text = "\n".join(",".join(map(str, part)) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()
