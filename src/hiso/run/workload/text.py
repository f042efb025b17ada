"""A workload of text: a language model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hiso.core.fingerprint import hash_names
from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.replica.replica import DTYPES
from hiso.data.batches import Shard
from hiso.errors import SettingsError
from hiso.run.identity import JOINT_DIRECTIONS, settings_identity
from hiso.run.observer import Advance, Observer
from hiso.run.settings import Settings
from hiso.run.workload.base import EVAL_BATCH, device_of, some
from hiso.run.workload.divide import divide
from hiso.run.workload.objects import NOTHING, Objects
from hiso.workloads.text.chat import read_chat
from hiso.workloads.text.choice import FULL, Choice
from hiso.workloads.text.classes import check_classes
from hiso.workloads.text.encode import Encoded, encode
from hiso.workloads.text.metrics import evaluate
from hiso.workloads.text.models import LanguageModel
from hiso.workloads.text.objective import Objective, Rows
from hiso.workloads.text.quantised import quantise
from hiso.workloads.text.task import Task
from hiso.workloads.text.together import check_together
from hiso.workloads.text.trained import choose


@dataclass(frozen=True)
class Words:
    """A `Workload` with a language model and a task."""

    lm: LanguageModel
    task: Task
    shards: list[Shard[Encoded]]
    dev: Sequence[Encoded]
    test: Sequence[Encoded]
    source: str
    identity: Identity

    @property
    def module(self) -> nn.Module:
        """The language model."""
        return self.lm.model

    @property
    def labels(self) -> int:
        """See `Workload.labels`."""
        return len(self.task.labels)

    def objective(self, rows: Rows, *, joint: bool) -> Objective:
        """See `Workload.objective`."""
        return Objective(self.lm, self.task, joint=joint, rows=rows)

    def evaluate(
        self,
        objective: Objective,
        examples: Sequence[Encoded],
        biases: NDArray[np.float64] | None,
        advance: Advance,
    ) -> dict[str, float]:
        """See `Workload.evaluate`."""
        return evaluate(objective, examples, EVAL_BATCH, advance, biases)


def load_words(
    settings: Settings,
    method: Method,
    observer: Observer,
    own: tuple[int, ...] | None,
    objects: Objects = NOTHING,
) -> Words:
    """See `hiso.run.workload.load.load_workload`."""
    task = objects.load_task(settings)
    with observer.phase(f"loading data for {task.name}"):
        splits = objects.load_splits(settings, task)
    with observer.phase(f"loading model {settings.model}"):
        lm = objects.load_model(settings)
        choice = choose(lm, settings.make_choice(), settings.seed)
        if settings.joint_directions:
            check_together(lm)  # in float32 and on the CPU
        if settings.frozen != "dtype":
            quantise(lm, settings.frozen, DTYPES[settings.dtype])
        lm.model.to(device_of(settings))  # pyright: ignore[reportArgumentType]
    check_classes(lm, task)
    task = _in_style(settings, task, lm)
    if lm.context is not None and settings.max_length > lm.context:
        raise SettingsError(
            f"max_length is {settings.max_length}, but {lm.name} reads no more than {lm.context} "
            f"tokens. Set max_length to {lm.context} or less."
        )
    tokenise = partial(encode, classifier=lm.classes is not None)
    with observer.phase("tokenising and partitioning"):
        dev, test = (
            some(tokenise(examples, task, lm.tokenizer, settings.max_length), count)
            for examples, count in (
                (splits.dev, settings.dev_examples),
                (splits.test, settings.test_examples),
            )
        )
        train = tokenise(splits.train, task, lm.tokenizer, settings.max_length)
        shards, partition = divide(splits.train, train, settings, own)
    more: dict[str, Any] = {"answer_tokens": task.answer_tokens} if task.answers else {}
    if settings.task_definition is not None:
        more |= {"classes": list(task.classes)}
    if task.chat is not None:
        more |= {"chat": asdict(task.chat)}
    identity = replace(
        settings_identity(settings, method, len(task.labels)),
        model=describe_model(lm, objects, choice),
        task={"name": task.name, "template": task.template, "labels": list(task.labels), **more},
        data={"fingerprint": splits.fingerprint, "max_length": settings.max_length},
        partition=partition,
        joint=settings.joint,
    )
    if settings.joint_directions:
        identity = replace(identity, facts={**identity.facts, JOINT_DIRECTIONS: True})
    return Words(lm, task, shards, dev, test, splits.source, identity)


def _in_style(settings: Settings, task: Task, lm: LanguageModel) -> Task:
    """The task, with chat prompts if the settings say so.

    Raises:
        SettingsError: The task is free text, or the model has a classification head.
        LoadError: The tokenizer has no chat template that can be used.
    """
    if settings.prompt_style == "plain":
        return task
    if task.is_text or lm.classes is not None:
        reason = (
            f"task '{task.name}' is free text, which has no prompt"
            if task.is_text
            else f"{lm.name} is a classifier, which answers nothing"
        )
        raise SettingsError(f"prompt_style = chat: {reason}. Set prompt_style = plain.")
    return task.in_chat(read_chat(lm.tokenizer))


def describe_model(lm: LanguageModel, objects: Objects, choice: Choice = FULL) -> dict[str, Any]:
    """The identity's entry for a base model, with its trained parameters if not all are trained.

    Args:
        lm: The model, after `choose`.
        objects: The user's objects, which may include the model.
        choice: The result of `choose`.
    """
    if objects.model is None and choice.full:
        return {"fingerprint": lm.fingerprint}
    names = {name: parameter.requires_grad for name, parameter in lm.model.named_parameters()}
    trained = [name for name, trainable in names.items() if trainable]
    part: dict[str, Any] = {} if len(trained) == len(names) else {"trained": hash_names(trained)}
    targets = {} if not choice.adapts else {"targets": list(choice.targets or ())}
    return {"fingerprint": lm.fingerprint, **part, **targets}
