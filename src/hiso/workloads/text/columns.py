"""Makes a task from the columns of a file: the classes in a column, and label words for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hiso.data.files import SUFFIXES, Problems, read_rows
from hiso.errors import LoadError
from hiso.workloads.text.examples import find_files
from hiso.workloads.text.task import Task
from hiso.workloads.text.verbalizer import check_labels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_CLASSES = 20
"""Largest number of distinct values of a label column."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five")
_NUMBERS += ("six", "seven", "eight", "nine", "ten")
_BY_HAND = (
    "Name each value and a label word for it in the settings:\n"
    '  [task_definition.labels]\n  "VALUE" = "word"'
)


def count_classes(data: str, columns: Sequence[str], label_column: str) -> dict[str, int]:
    """The number of rows with each value of the label column.

    Values that differ only in case or outer white space count as one value, in its first spelling.

    Args:
        data: A .csv, .tsv or .jsonl file; or a folder of them, as for `load_examples`.
        columns: The other columns that a row must have.
        label_column: The column of the labels.

    Returns:
        Counts by value: first words in alphabetical order, then numbers ascending.

    Raises:
        LoadError: There is no such file or column, a row has no label, or there are fewer than 2
            or more than `MOST_CLASSES` values.
    """
    counts, spelling = Counter[str](), dict[str, str]()
    for path in _files(data):
        for value in _values(path, columns, label_column):
            key = value.casefold()
            counts[spelling.setdefault(key, value)] += 1
    if len(counts) == 1:
        raise LoadError(
            f"column {label_column!r} of {data} has one value only, {next(iter(counts))!r}: "
            "name a column with different values."
        )
    if len(counts) > MOST_CLASSES:
        some = ", ".join(repr(value) for value in list(counts)[:5])
        raise LoadError(
            f"column {label_column!r} of {data} has {len(counts):,} distinct values ({some}, …), "
            f"more than {MOST_CLASSES}: is it a column of labels? If it is: {_BY_HAND}"
        )
    return {value: counts[value] for value in in_order(counts)}


def in_order(values: Iterable[str]) -> list[str]:
    """The values of a label column in the order of label numbers: words, then numbers ascending."""
    return sorted(values, key=lambda value: (*_number(value), value))


def choose_words(task: Task, values: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Task:
    """The task with a label word for each value; the words have different first tokens.

    The words are the values themselves or, for whole numbers from 0 to 10, their English names,
    because many tokenizers begin all numbers with the same token.

    Args:
        task: A task without label words.
        values: The values; the first is label 0.
        tokenizer: The model's tokenizer.

    Raises:
        LoadError: There are no suitable words.
    """
    candidates = [[" ".join(value.split()) for value in values]]
    numbers = [float(value) if _number(value)[0] else -1 for value in values]
    if all(number in range(len(_NUMBERS)) for number in numbers):
        candidates.append([_NUMBERS[int(number)] for number in numbers])
    for words in candidates:
        labels = tuple(f"{task.gap}{word}" for word in words)
        try:
            found = replace(task, labels=labels, classes=tuple(values))
            mode = check_labels(found, tokenizer).mode
        except LoadError:  # a word has no token, or two are equal: try the next words
            continue
        if mode == "token":
            return found
    raise LoadError(
        f"the labels {', '.join(map(repr, values))} do not begin with different tokens of this "
        f"model, so they cannot be its label words. {_BY_HAND}"
    )


def _number(value: str) -> tuple[bool, float]:
    """Whether a value is a finite number, and that number or 0."""
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return (True, number) if math.isfinite(number) else (False, 0.0)


def _files(data: str) -> list[Path]:
    path = Path(data).expanduser()
    if path.is_dir():
        return [found for found in find_files(path) if found is not None]
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return [path]
    raise LoadError(
        f"label words are made from a {', '.join(SUFFIXES)} file or a folder of such, and {data} "
        f"is none. {_BY_HAND}"
    )


def _values(path: Path, columns: Sequence[str], label_column: str) -> list[str]:
    problems, found, known = Problems(path), list[str](), dict[str, None]()
    for line, row in read_rows(path):
        known |= dict.fromkeys(row)
        missing = [name for name in (*columns, label_column) if name not in row]
        value = row.get(label_column)
        text = "" if value is None else str(value).strip()
        if missing:
            problems.add(line, f"no column {', '.join(map(repr, missing))}")
            if path.suffix.lower() != ".jsonl":
                break
        elif not text:
            problems.add(line, f"{label_column!r} is empty")
        found.append(text)
    problems.check(f"Name columns that {path.name} has: {', '.join(map(repr, known))}.")
    return found
