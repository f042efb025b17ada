"""Reading rows from local CSV, TSV and JSON Lines files, with every problem's line number."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hiso.errors import LoadError

SUFFIXES = (".csv", ".tsv", ".jsonl")
_SHOWN = 10


class Problems:
    """The problems of a file or a list: the first few of them, and their number."""

    def __init__(self, source: object, place: str = "line") -> None:
        self.source, self._place = source, place
        self.count = 0
        self._lines: list[str] = []

    def add(self, line: int, text: str) -> None:
        """Note a problem in line `line` (counted from 1), or at another numbered place."""
        self.count += 1
        if len(self._lines) < _SHOWN:
            self._lines.append(f"  {self._place} {line}: {text}")

    def check(self, remedy: str) -> None:
        """Raise if there is any problem.

        Raises:
            LoadError: With the problems found, and `remedy`.
        """
        if not self.count:
            return
        more = self.count - len(self._lines)
        rest = [f"  and {more} more"] if more else []
        noun = "problem" if self.count == 1 else "problems"
        text = "\n".join([f"{self.source}: {self.count} {noun}:", *self._lines, *rest])
        raise LoadError(f"{text}\n{remedy}")


def read_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a file with their line numbers (from 1; for a row of several lines, the last).

    CSV follows the usual quoting rules. TSV has no quoting, as in GLUE's files: a cell cannot
    contain a tab or a line break. Both start with a line of column names. JSON Lines has one
    object per line. All files are UTF-8.

    Raises:
        LoadError: The file cannot be read or parsed; the message lists the faulty lines, up to a
            limit.
    """
    problems = Problems(path)
    parse = _json_lines if path.suffix.lower() == ".jsonl" else _table
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(parse(file, path, problems))
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise LoadError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it, for "
            "instance with: iconv -f latin1 -t utf8"
        ) from error
    problems.check("Correct these lines or remove them.")
    if not rows:
        raise LoadError(f"{path} has no rows.")
    return rows


def _table(file: Any, path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    tabs = path.suffix.lower() == ".tsv"
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(file, delimiter="\t" if tabs else ",", quoting=quoting)
    try:
        columns = next(reader, [])
        for cells in reader:
            if len(cells) == len(columns):
                yield reader.line_num, dict(zip(columns, cells, strict=True))
            elif cells:
                problems.add(
                    reader.line_num, f"{len(cells)} cells, but there are {len(columns)} columns"
                )
    except csv.Error as error:
        problems.add(reader.line_num, f"{error}. For very long texts use JSON Lines (.jsonl)")


def _json_lines(file: Any, _: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.add(number, f"not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            problems.add(number, "not a JSON object")
