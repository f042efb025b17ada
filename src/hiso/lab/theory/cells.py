"""Finished cells of an experiment, one line of JSON each; they are not repeated after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiso.errors import RunConflict
from hiso.run.folder import locked

FILE = "cells.jsonl"

Cell = dict[str, Any]


class Cells:
    """The cells of one folder. The first line of the file is their preset."""

    def __init__(self, path: Path, known: Mapping[str, Cell]) -> None:
        self._path, self._known = path, dict(known)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str, work: Callable[[], Cell]) -> Cell:
        """The cell called `key`; if it does not exist yet, computes it by `work` and stores it."""
        if key not in self._known:
            cell = json.loads(json.dumps(work(), allow_nan=False))
            self._append({"cell": key, **cell})
            self._known[key] = cell
        return self._known[key]

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def open_cells(folder: Path, preset: Mapping[str, Any]) -> Iterator[Cells]:
    """The cells in `folder`, which is created if needed and locked against other processes.

    Raises:
        RunConflict: The folder holds cells of another preset, or another process is using it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, f"another process is at work in {folder}: wait for it or stop it"):
        path, given = folder / FILE, json.loads(json.dumps(preset))
        lines = _whole_lines(path)
        if lines and lines[0] != given:
            stored = lines[0]
            different = sorted(
                key for key in {*stored, *given} if stored.get(key) != given.get(key)
            )
            raise RunConflict(
                f"{folder} holds cells of another preset, which differs in "
                f"{', '.join(different)}: choose another folder"
            )
        if not lines:
            path.write_text(json.dumps(given) + "\n")
        known = {line.pop("cell"): line for line in lines[1:]}
        yield Cells(path, known)


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; an incomplete last line is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return [json.loads(line) for line in data[:end].splitlines()]
