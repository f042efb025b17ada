"""The table `task_definition` of the settings: the user's own task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.columns import in_order
from hiso.workloads.text.scores import SCORES
from hiso.workloads.text.task import Task

OWN = "own"
"""The default name of a task that is defined by a table."""


class Definition(BaseModel):
    """A task as a table of settings: columns, prompt, label words, scores.

    With `label_column` the model chooses among label words; with `answers` it writes the answer
    after the prompt; with neither, it learns the text itself. See `hiso.workloads.text.task.Task`.

    Attributes:
        text_column: The column of the text, if there is no template.
        template: Prompt with {column} placeholders. By default the text, and, with labels, a line
            with the name of their column.
        label_column: The column of the labels.
        labels: A label word for each value of the label column. By default they are made from the
            values in the data: see `hiso.run.workload.own_task.complete`. A word follows the
            prompt after a space.
        answers: Columns that may hold the right answers; the first of them in a row is used.
        answer_tokens: Maximum number of tokens of an answer, including the end token.
        metrics: Scores of answers: f1, exact_match, rouge1, rouge2, rougeL; default: the first
            two.
        shared: Columns of the template whose text several rows may share; such rows are never put
            into different splits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_column: str | None = None
    template: str | None = None
    label_column: str | None = None
    labels: Annotated[dict[str, str], Field(min_length=2)] | None = None
    answers: tuple[str, ...] = ()
    answer_tokens: Annotated[int, Field(ge=0)] = 0
    metrics: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _agree(self) -> Definition:
        problems = list(self._problems())
        if not problems:
            try:
                self.outline(OWN)
            except LoadError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(f"task_definition: {problem}" for problem in problems))
        return self

    def _problems(self) -> Iterator[str]:
        if self.text_column is None and self.template is None:
            yield "give text_column, the name of a column, or template, a prompt with {columns}"
        for name in _fields(self.template or ""):
            if name is None:
                yield f"template = {self.template!r}: double a brace that is text: {{{{ or }}}}"
            elif not name:
                yield "template: name a column in each pair of braces, as {text}"
            elif set(name) & set(".["):
                yield f"template: rename the column {name!r}, without any of []."
        if self.template is None and set(self.text_column or "") & set("{}[].:!"):
            yield f"text_column = {self.text_column!r}: rename it, without any of {{}}[].:!"
        if self.labels is not None and self.label_column is None:
            yield "labels needs label_column, the name of the column of the labels"
        if self.answers and self.label_column is not None:
            yield "answers and label_column exclude each other"
        if self.answer_tokens and not self.answers:
            yield "answer_tokens needs answers, the names of columns"
        if self.answers and self.answer_tokens < 2:
            yield "answers needs answer_tokens, of 2 or more"
        if self.metrics and not self.answers:
            yield "metrics is for answers: labels have accuracy and f1, and text has perplexity"
        if unknown := [name for name in self.metrics if name not in SCORES]:
            yield f"metrics: unknown {', '.join(unknown)}; known: {', '.join(SCORES)}"
        if not all(word.strip() for word in (self.labels or {}).values()):
            yield "labels: a label word is empty"
        if len({_key(value) for value in self.labels or {}}) < len(self.labels or {}):
            yield "labels: two values are the same but for case or white space"

    @property
    def lacks_words(self) -> bool:
        """Whether its label words must still be made from data."""
        return self.label_column is not None and self.labels is None

    @property
    def prompt(self) -> str:
        """The template, by default the text, and with labels a line with their column's name."""
        if self.template is not None:
            return self.template
        if self.label_column is None:
            return f"{{{self.text_column}}}"
        cue = self.label_column.strip().replace("_", " ").replace("{", "{{").replace("}", "}}")
        return f"{{{self.text_column}}}\n{cue[:1].upper()}{cue[1:]}:"

    def make_task(self, name: str) -> Task:
        """The task.

        Raises:
            SettingsError: Its label words must still be made from data.
        """
        if self.lacks_words:
            raise SettingsError(
                "task_definition has no labels. `hiso run` makes them from the data and prints "
                "the table: put it into the settings of every participant"
            )
        return self.outline(name)

    def outline(self, name: str) -> Task:
        """The task, without label words if they must still be made from data."""
        values = in_order(self.labels or {})
        words = self.labels or {}
        metrics = ("accuracy", "f1") if self.label_column else ("perplexity",)
        return Task(
            name=name,
            template=self.prompt,
            labels=tuple(f" {words[value].strip()}" for value in values),
            classes=tuple(values),
            exact=True,
            answers=self.answers,
            answer_tokens=self.answer_tokens,
            metrics=(self.metrics or ("f1", "exact_match")) if self.answers else metrics,
            label_column=self.label_column or "label",
            shared=self.shared,
        )

    def toml(self, counts: Mapping[str, int]) -> str:
        """The table as TOML text, with the number of rows of each label value."""
        lines = ["[task_definition]"]
        for key in ("text_column", "template", "label_column"):
            value = getattr(self, key)
            lines += [] if value is None else [f"{key} = {_quoted(value)}"]
        lines.append("[task_definition.labels]")
        words = self.labels or {}
        pairs = {value: f"{_quoted(value)} = {_quoted(word)}" for value, word in words.items()}
        width = max(map(len, pairs.values()), default=0)
        lines += [f"{pair:{width}}  # {counts[value]:,} rows" for value, pair in pairs.items()]
        return "\n".join(lines)


def _fields(template: str) -> list[str | None]:
    """The placeholders of a template; [None] if the template is not valid."""
    try:
        return [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        return [None]


def _key(value: str) -> str:
    return value.strip().casefold()


def _quoted(text: str) -> str:
    """A string in TOML syntax."""
    return json.dumps(text, ensure_ascii=False)
