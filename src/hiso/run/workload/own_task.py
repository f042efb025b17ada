"""Completes the user's own task from the data, if only its columns are given."""

from __future__ import annotations

from hiso.errors import SettingsError
from hiso.run.observer import Observer
from hiso.run.settings import Settings
from hiso.run.workload.objects import Objects
from hiso.workloads.text.chat import read_chat
from hiso.workloads.text.columns import choose_words, count_classes
from hiso.workloads.vision.images import DATA_SETS


def complete(settings: Settings, objects: Objects, observer: Observer) -> Settings:
    """The settings with a complete `task_definition`, if they have one without label words.

    The words are made from the values of the label column, and checked with the model's tokenizer.
    For a model with a classification head the words are the values, and the prompt is only the
    text. The result is shown as TOML, with the number of rows of each value, and becomes part of
    the run's settings.

    Raises:
        SettingsError: `data` does not name a file.
        LoadError: The data have no such columns, no labels, or too many labels; or the tokenizer
            cannot be loaded, or gives the same first token to two words.
    """
    definition = settings.task_definition
    if definition is None or settings.task in DATA_SETS:  # the latter is refused later
        return settings
    made = definition.label_column and (definition.lacks_words or definition.template is None)
    classifier = bool(made) and objects.has_classes(settings)
    prompt = f"{{{definition.text_column}}}" if classifier else definition.prompt
    definition = definition.model_copy(update={"template": definition.template or prompt})
    if definition.lacks_words:
        if settings.data is None or objects.data is not None:
            raise SettingsError(
                "task_definition without labels takes them from a file: name it as data, or name "
                "each value and a label word for it as task_definition.labels"
            )
        assert definition.label_column is not None
        task = definition.outline(settings.task)
        with observer.phase("counting labels"):
            counts = count_classes(settings.data, task.columns, definition.label_column)
        words = {value: " ".join(value.split()) for value in counts}
        if not classifier:
            with observer.phase(f"loading the tokenizer of {settings.model}"):
                tokenizer = objects.load_tokenizer(settings)
            if settings.prompt_style == "chat":
                task = task.in_chat(read_chat(tokenizer))
            labels = choose_words(task, list(counts), tokenizer).labels
            words = {value: word.strip() for value, word in zip(counts, labels, strict=True)}
        definition = definition.model_copy(update={"labels": words})
        observer.notice(f"made from the columns of {settings.data}:\n{definition.toml(counts)}")
    return settings.model_copy(update={"task_definition": definition})
