"""What a run is made of that is a Python object, in place of a name or a path."""

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
    """Objects of the user's own; what is None is named by the settings.

    A run's settings hold only what kind of object there was, as `own:LlamaForCausalLM`; its
    identity has their fingerprints, as that of any run. So a run goes on with the same objects
    alone, and with those it is the run that it would be by names.

    Attributes:
        model: A causal language model or a classifier with float32 weights. It is copied, and
            stays as it is.
        tokenizer: That of `model`, which needs one.
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
        """The settings that stand for them."""
        found = {"model": self.model, "data": self.data}
        names = {key: type(value).__name__ for key, value in found.items() if value is not None}
        names |= {} if self.task is None else {"task": self.task.name}
        return {key: _OWN + name for key, name in names.items()}

    def check(self, settings: Settings, *keys: str) -> None:
        """Makes sure that all objects are there that settings speak of, or those of some `keys`.

        Raises:
            LoadError: One is not.
        """
        for key in keys or ("model", "task", "data"):
            value = getattr(settings, key) or ""
            if value.startswith(_OWN) and getattr(self, key) is None:
                raise LoadError(
                    f"{key} = {value} is an object that the run was made with from Python: pass "
                    f"the same one again as `{key}`. Such a run can be gone on with, evaluated and "
                    "opened only with the same objects"
                )

    def load_task(self, settings: Settings) -> Task:
        """The task.

        Raises:
            LoadError: There is none of that name.
            SettingsError: Its definition is not whole.
        """
        if self.task is not None:
            return self.task
        if settings.task_definition is not None:
            return settings.task_definition.make_task(settings.task)
        return get_task(settings.task)

    def load_splits(self, settings: Settings, task: Task) -> Splits:
        """The examples.

        Raises:
            LoadError: They cannot be loaded, or are not what the task needs.
        """
        column = settings.partition_column
        if self.data is None:
            return load_examples(task, settings.data, group_column=column)
        return split_rows(task, self.data, group_column=column)

    def load_tokenizer(self, settings: Settings) -> PreTrainedTokenizerBase:
        """The model's tokenizer alone.

        Raises:
            LoadError: It cannot be loaded.
        """
        return load_tokenizer(settings.model) if self.tokenizer is None else self.tokenizer

    def has_classes(self, settings: Settings) -> bool:
        """Whether the model has a classification head, without its weights.

        Raises:
            LoadError: It cannot be found or read.
        """
        if self.model is None:
            return names_classifier(settings.model)
        return has_classes([type(self.model).__name__])

    def load_model(self, settings: Settings) -> LanguageModel:
        """The model.

        Raises:
            LoadError: It cannot be loaded, or is not supported.
        """
        if self.model is None or self.tokenizer is None:
            return load_model(settings.model)
        return copy_model(self.model, self.tokenizer)


NOTHING = Objects()
