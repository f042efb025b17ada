"""Models, tasks and data that are Python objects instead of names or paths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hiso.errors import LoadError, SettingsError
from hiso.run.settings import Settings
from hiso.workloads.text.classifiers import has_classes
from hiso.workloads.text.examples import Splits, load_examples, split_rows
from hiso.workloads.text.models import (
    LanguageModel,
    copy_model,
    load_model,
    load_tokenizer,
    names_classifier,
)
from hiso.workloads.text.task import Task
from hiso.workloads.text.tasks import get_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OWN = "own:"


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """The user's own objects; whatever is None is named by the settings.

    A run's settings hold only the type of each object, such as `own:LlamaForCausalLM`; its
    identity has the fingerprints of the objects. So a run can be resumed only with the same
    objects, and it equals the run with the same model, task and data by name.

    Attributes:
        model: A causal language model or a classifier with float32 weights. It is copied, and not
            changed.
        tokenizer: The tokenizer of `model`, which is required.
        task: A task.
        data: A list of rows, a Hugging Face data set, or several by their names; see
            `hiso.workloads.text.examples.split_rows`.

    Raises:
        SettingsError: There is a model without a tokenizer, or a tokenizer without a model.
    """

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    task: Task | None = None
    data: Any = None

    def __post_init__(self) -> None:
        if (self.model is None) != (self.tokenizer is None):
            raise SettingsError("a model object and its tokenizer object go together: give both")

    @property
    def settings(self) -> dict[str, str]:
        """The settings that represent the objects."""
        found = {"model": self.model, "data": self.data}
        names = {key: type(value).__name__ for key, value in found.items() if value is not None}
        names |= {} if self.task is None else {"task": self.task.name}
        return {key: _OWN + name for key, name in names.items()}

    def check(self, settings: Settings, *keys: str) -> None:
        """Checks that all objects mentioned in the settings, or those in `keys`, are given.

        Raises:
            LoadError: An object is missing.
        """
        for key in keys or ("model", "task", "data"):
            value = getattr(settings, key) or ""
            if value.startswith(_OWN) and getattr(self, key) is None:
                raise LoadError(
                    f"{key} = {value} is an object that the run was made with from Python: pass "
                    f"the same one again as `{key}`. Such a run can be resumed, evaluated and "
                    "opened only with the same objects"
                )

    def load_task(self, settings: Settings) -> Task:
        """The task.

        Raises:
            LoadError: There is no task of this name.
            SettingsError: The task's definition is not complete.
        """
        if self.task is not None:
            return self.task
        if settings.task_definition is not None:
            return settings.task_definition.make_task(settings.task)
        return get_task(settings.task)

    def load_splits(self, settings: Settings, task: Task) -> Splits:
        """The examples.

        Raises:
            LoadError: The examples cannot be loaded, or do not fit the task.
        """
        column = settings.partition_column
        if self.data is None:
            return load_examples(task, settings.data, group_column=column)
        return split_rows(task, self.data, group_column=column)

    def load_tokenizer(self, settings: Settings) -> PreTrainedTokenizerBase:
        """Only the model's tokenizer.

        Raises:
            LoadError: The tokenizer cannot be loaded.
        """
        return load_tokenizer(settings.model) if self.tokenizer is None else self.tokenizer

    def has_classes(self, settings: Settings) -> bool:
        """Whether the model has a classification head; does not load its weights.

        Raises:
            LoadError: The model cannot be found or read.
        """
        if self.model is None:
            return names_classifier(settings.model)
        return has_classes([type(self.model).__name__])

    def load_model(self, settings: Settings) -> LanguageModel:
        """The model.

        Raises:
            LoadError: The model cannot be loaded, or is not supported.
        """
        if self.model is None or self.tokenizer is None:
            return load_model(settings.model)
        return copy_model(self.model, self.tokenizer)


NOTHING = Objects()
