"""Checks that the classes of a model with a classification head are the labels of a task."""

from __future__ import annotations

from typing import Any

from hiso.errors import SettingsError
from hiso.workloads.text.models import LanguageModel
from hiso.workloads.text.task import Task


def check_classes(lm: LanguageModel, task: Task) -> None:
    """Checks that the classes of a model, if it has a head, are the labels of a task.

    Raises:
        SettingsError: The task has no labels, or another number of labels, or the model's
            configuration has the same label names in another order.
    """
    if lm.classes is None:
        return
    if not task.labels:
        raise SettingsError(
            f"{lm.name} is a classifier, and task '{task.name}' has no labels: free text and "
            "answers take a causal language model."
        )
    if lm.classes != len(task.labels):
        raise SettingsError(
            f"{lm.name} has {lm.classes} classes, but task '{task.name}' has {len(task.labels)} "
            f"labels. Save a model with num_labels={len(task.labels)}."
        )
    names: Any = lm.model.config.id2label or {}
    theirs = [_key(names.get(number, "")) for number in range(lm.classes)]
    for mine in (task.classes, task.labels):
        keys = [_key(name) for name in mine]
        if theirs != keys and sorted(theirs) == sorted(keys):
            raise SettingsError(
                f"the classes of {lm.name} are in the order {', '.join(theirs)}, but the labels of "
                f"task '{task.name}' in the order {', '.join(keys)}. Use a hiso.Task with its "
                "labels and classes in the model's order."
            )


def _key(name: str) -> str:
    return name.strip().casefold()
