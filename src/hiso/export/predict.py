"""Predictions of a tuned model: labels with probabilities, answers, or continuations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.errors import Diverged, LoadError
from hiso.export.load import Tuned
from hiso.export.task import task_of
from hiso.run.observer import Observer, Silent
from hiso.run.workload.base import EVAL_BATCH
from hiso.workloads.text.encode import Encoded, encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.generation import stop_tokens, write_answers
from hiso.workloads.text.models import LanguageModel
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.task import Row, Task
from hiso.workloads.text.verbalizer import prefix, tokens

CONTINUATION = 32
"""Maximum number of tokens of a continuation of free text."""


class Predictor:
    """Predicts with a tuned model, with the same prompts as in its run.

    Computes in float32, for any dtype of the run. Prompts are cut to the run's `max_length`.

    Attributes:
        task: The run's task.
        max_length: The run's `max_length`.
    """

    def __init__(self, tuned: Tuned) -> None:
        self.task = task_of(tuned.identity)
        self.max_length: int = tuned.identity.data["max_length"]
        self._models = {"tuned": _Model(tuned.lm, self.task, tuned.biases)}
        if tuned.base is not None:
            self._models["base"] = _Model(tuned.base, self.task, None)

    def __call__(
        self, rows: Sequence[Row], observer: Observer | None = None
    ) -> list[dict[str, Any]]:
        """The predictions for the rows, in order.

        Args:
            rows: Each has the task's columns; other columns are ignored.
            observer: Receives the progress.

        Returns:
            For each row `input`, the row itself, and `tuned`; with a base model also `base`. These
            hold, with labels, `label` and `probabilities` by name; with answers, `answer`; for
            free text, `perplexity` (None for a single token) and `continuation`.

        Raises:
            LoadError: A row lacks a column, or a column is empty.
            SettingsError: The run's `max_length` does not fit the model.
            Diverged: The model's scores are not finite.
        """
        for number, row in enumerate(rows, 1):
            if empty := [c for c in self.task.columns if _is_empty(row.get(c))]:
                raise LoadError(
                    f"row {number} has no {', '.join(empty)}: task {self.task.name} needs "
                    f"{', '.join(self.task.columns)}"
                )
        said: list[dict[str, Any]] = []
        with (observer or Silent()).phase("predicting", len(rows)) as advance:
            for start in range(0, len(rows), EVAL_BATCH):
                part = rows[start : start + EVAL_BATCH]
                each = {name: model(part, self.max_length) for name, model in self._models.items()}
                said += [
                    {"input": dict(row), **{name: answers[i] for name, answers in each.items()}}
                    for i, row in enumerate(part)
                ]
                advance(len(part))
        return said


def _is_empty(value: Any) -> bool:
    return value is None or not str(value).strip()


class _Model:
    """One model, with prompts according to the task."""

    def __init__(self, lm: LanguageModel, task: Task, biases: NDArray[np.float64] | None) -> None:
        self._lm, self._task, self._biases = lm, task, biases
        self._objective = Objective(lm, task)
        self._stops = frozenset[int]() if task.labels else stop_tokens(lm)

    def __call__(self, rows: Sequence[Row], max_length: int) -> list[dict[str, Any]]:
        if self._task.is_text:
            return list(self._texts([self._task.prompt(row) for row in rows], max_length))
        encoded = self._encode(rows, max_length)
        if self._task.labels:
            return list(self._labels(encoded))
        prompts = [example.ids[: example.start] for example in encoded]
        answers = write_answers(self._lm, prompts, self._task.answer_tokens, self._stops)
        return [{"answer": answer} for answer in answers]

    def _encode(self, rows: Sequence[Row], max_length: int) -> list[Encoded]:
        task = self._task
        # The right answer is not known; prompts and scores do not depend on it.
        label, answers = (0, ()) if task.labels else (None, ("-",))
        examples = [
            Example(task.prompt(row), label, answers=answers, context=task.context(row))
            for row in rows
        ]
        classifier = self._lm.classes is not None
        return encode(examples, task, self._lm.tokenizer, max_length, classifier=classifier)

    def _labels(self, encoded: Sequence[Encoded]) -> Iterator[dict[str, Any]]:
        task = self._task
        names = task.classes or [word.strip() for word in task.labels]
        scores, _ = self._objective.measure(encoded).shifted(self._biases).labelled()
        if not np.isfinite(scores).all():
            raise Diverged("the model's scores are not finite: its run has diverged.")
        odds = np.exp(scores - scores.max(1, keepdims=True), dtype=np.float64)
        for row in odds / odds.sum(1, keepdims=True):
            probabilities = dict(zip(names, row.tolist(), strict=True))
            yield {
                "label": max(probabilities, key=lambda name: probabilities[name]),
                "probabilities": probabilities,
            }

    def _texts(self, texts: Sequence[str], max_length: int) -> Iterator[dict[str, Any]]:
        tokenizer, context = self._lm.tokenizer, self._lm.context or math.inf
        room = int(min(max_length, context - CONTINUATION))
        before = prefix(tokenizer)
        room -= len(before)
        heads = [np.asarray(before + tokens(tokenizer, t)[-room:], np.int32) for t in texts]
        written = write_answers(self._lm, heads, CONTINUATION, self._stops)
        for head, text in zip(heads, written, strict=True):
            yield {"perplexity": self._perplexity(head), "continuation": text}

    def _perplexity(self, head: np.ndarray) -> float | None:
        if len(head) < 2:
            return None
        outcome = self._objective.measure([Encoded(head, None)])
        loss = float(outcome.losses.sum() / outcome.weights.sum())
        if not math.isfinite(loss):
            raise Diverged("the model's loss is not finite: its run has diverged.")
        return math.exp(min(loss, 700.0))


def rows_of(texts: Sequence[str], task: Task) -> list[Mapping[str, Any]]:
    """Rows from texts: JSON objects if the task has several columns, otherwise plain texts.

    Raises:
        LoadError: A JSON object is needed, but a line is not one.
    """
    if len(task.columns) == 1:
        return [{task.columns[0]: text} for text in texts]
    return [_object(text, number, task) for number, text in enumerate(texts, 1)]


def _object(text: str, number: int, task: Task) -> Mapping[str, Any]:
    try:
        row = json.loads(text)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        columns = ", ".join(f'"{name}": …' for name in task.columns)
        raise LoadError(f"text {number} must be JSON for task {task.name}: {{{columns}}}")
    return row
