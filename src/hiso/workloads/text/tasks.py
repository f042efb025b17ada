"""The built-in tasks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from hiso.core.importing import import_object, is_path
from hiso.errors import LoadError
from hiso.workloads.text.scores import SCORES
from hiso.workloads.text.task import Row, Source, Task

_GLUE = "nyu-mll/glue"
_SUPER_GLUE = "aps/super_glue"
_NO_YES = (" No", " Yes")
_YES_NO = (" Yes", " No")


def _mark_pronoun(row: Row) -> Row:
    """Puts stars around the pronoun in question, which may occur more than once in the text."""
    words = row["text"].split(" ")
    position = int(row["span2_index"])
    if position < len(words) and row["span2_text"].casefold() in words[position].casefold():
        words[position] = f"*{words[position]}*"
    return {"text": " ".join(words)}


_ALL = (
    Task(
        name="sst2",
        template="{sentence} It was",
        labels=(" terrible", " great"),
        classes=("negative", "positive"),
        source=Source(_GLUE, "sst2"),
        shared=("sentence",),
        phrases=True,
    ),
    Task(
        name="rte",
        template="{sentence1}\nDoes this mean that the following is true? {sentence2}\nAnswer:",
        labels=_YES_NO,
        classes=("entailment", "not_entailment"),
        source=Source(_GLUE, "rte"),
        shared=("sentence1",),
    ),
    Task(
        name="cb",
        template="{premise}\nDoes this mean that the following is true? {hypothesis}\n"
        "Yes, No or Maybe? Answer:",
        labels=(" Yes", " No", " Maybe"),
        classes=("entailment", "contradiction", "neutral"),
        source=Source(_SUPER_GLUE, "cb"),
        metrics=("accuracy", "f1"),
        shared=("premise",),
    ),
    Task(
        name="boolq",
        template="{passage}\nQuestion: {question}?\nAnswer:",
        labels=_NO_YES,
        classes=("False", "True"),
        source=Source(_SUPER_GLUE, "boolq"),
        shared=("passage",),
    ),
    Task(
        name="wic",
        template="{sentence1}\n{sentence2}\n"
        'Does the word "{word}" mean the same in both sentences? Answer:',
        labels=_NO_YES,
        classes=("False", "True"),
        source=Source(_SUPER_GLUE, "wic"),
        shared=("sentence1", "sentence2"),
    ),
    Task(
        name="wsc",
        template='{text}\nDoes "{span2_text}" stand for "{span1_text}" here? Answer:',
        labels=_NO_YES,
        classes=("False", "True"),
        source=Source(_SUPER_GLUE, "wsc.fixed"),
        prepare=_mark_pronoun,
        columns=("text", "span1_text", "span2_text", "span2_index"),
        shared=("text",),
    ),
    Task(
        name="multirc",
        template="{paragraph}\nQuestion: {question}\nProposed answer: {answer}\n"
        "Is that a right answer? Answer:",
        labels=_NO_YES,
        classes=("False", "True"),
        source=Source(_SUPER_GLUE, "multirc"),
        metrics=("f1", "accuracy"),
        shared=("paragraph",),
    ),
    Task(
        name="qqp",
        template="First question: {question1}\nSecond question: {question2}\n"
        "Do the two ask the same thing? Answer:",
        labels=_NO_YES,
        classes=("not_duplicate", "duplicate"),
        source=Source(_GLUE, "qqp"),
        metrics=("accuracy", "f1"),
        shared=("question1", "question2"),
    ),
    Task(
        name="rotten_tomatoes",
        template="{text} It was",
        labels=(" terrible", " great"),
        classes=("neg", "pos"),
        source=Source(
            "cornell-movie-review-data/rotten_tomatoes", test="test", packaged="rotten_tomatoes"
        ),
    ),
    Task(
        name="imdb",
        template="{text} It was",
        labels=(" terrible", " great"),
        classes=("neg", "pos"),
        source=Source("stanfordnlp/imdb", test="test", packaged="imdb"),
    ),
    Task(
        name="squad",
        template="{context}\nQuestion: {question}\nAnswer:",
        answers=("answers", "answer"),
        answer_tokens=32,
        source=Source("rajpurkar/squad"),
        metrics=("f1", "exact_match"),
        shared=("context",),
    ),
    Task(
        name="drop",
        template="{passage}\nQuestion: {question}\nAnswer:",
        answers=("answers_spans", "answers", "answer"),
        answer_tokens=32,
        source=Source("ucinlp/drop"),
        metrics=("f1", "exact_match"),
        shared=("passage",),
    ),
    Task(
        name="xsum",
        template="{document}\nSummary in one sentence:",
        answers=("summary", "answers", "answer"),
        answer_tokens=64,
        source=Source("EdinburghNLP/xsum", test="test"),
        metrics=("rougeL", "rouge1", "rouge2"),
    ),
    Task(name="text", template="{text}", metrics=("perplexity",)),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def get_task(name: str) -> Task:
    """The task called `name`, or the user's own task at `package.module:name`.

    Raises:
        LoadError: There is no such task; the message lists similar names, or says what to do.
    """
    if name in TASKS:
        return TASKS[name]
    if is_path(name):
        found = import_object(name)
        if not isinstance(found, Task):
            raise LoadError(f"{name} is a {type(found).__name__}: name a hiso.Task")
        return found
    close = difflib.get_close_matches(name.lower(), TASKS, n=3)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise LoadError(f"there is no task '{name}'.{hint} Tasks: {', '.join(TASKS)}.")


def headline(metrics: Mapping[str, float]) -> str | None:
    """The metric to show: the accuracy, or otherwise the first metric of the task."""
    names = ["accuracy", *(task.metrics[0] for task in _ALL), *SCORES]
    return next((name for name in names if name in metrics), None)
