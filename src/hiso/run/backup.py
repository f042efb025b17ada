"""Copies folders with databases in them while other processes use them: `hiso backup`."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from hiso.errors import ProtocolError, RunConflict, SettingsError
from hiso.ring.ledger.schema import translated
from hiso.run.observer import Observer

_SQLITE = b"SQLite format 3\0"
_BESIDE = ("-wal", "-shm", "-journal")
"""Ends of the names of files that SQLite keeps beside a database; the copy contains them."""


@dataclass(frozen=True)
class BackedUp:
    """What was copied.

    Attributes:
        folder: The new folder.
        files: Number of files.
        databases: How many of them are SQLite databases.
        bytes: Their total size.
    """

    folder: str
    files: int
    databases: int
    bytes: int


def back_up(paths: Sequence[Path], to: Path, observer: Observer) -> BackedUp:
    """Copies files and folders into the new folder `to`, under their paths from here.

    A SQLite database is copied as it is at one moment, whoever writes to it, and then checked. To
    restore, end the processes and copy the content of `to` back. Files are for their owner alone.

    Args:
        paths: Files and folders at or below the current folder.
        to: The folder to make; it is made whole or not at all.
        observer: Receives the progress.

    Raises:
        SettingsError: A path is missing, lies elsewhere or contains `to`.
        RunConflict: `to` exists already.
        ProtocolError: A database is damaged.
        StorageError: A file cannot be read or written.
    """
    here = Path.cwd()
    wanted = [path.resolve() for path in paths]
    problems = [
        f"{path}: {'there is no such file' if not path.exists() else f'it is not below {here}'}"
        for path in wanted
        if not path.exists() or here not in path.parents
    ]
    problems += [
        f"{path} would contain the copy" for path in wanted if path in to.resolve().parents
    ]
    if problems:
        raise SettingsError("\n".join(problems))
    if to.exists():
        raise RunConflict(f"{to} exists already: name a new folder")
    partial = to.with_name(f"{to.name}.partial")
    sources = [file for path in wanted for file in _files(path)]
    databases = 0
    try:
        with translated(to), observer.phase(f"copying {len(sources)} files"):
            partial.mkdir(mode=0o700, parents=True)
            for source in sources:
                databases += _copy(source, partial / source.relative_to(here))
            for folder in filter(Path.is_dir, partial.rglob("*")):
                folder.chmod(0o700)
            total = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
            os.replace(partial, to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return BackedUp(str(to), len(sources), databases, total)


def _files(path: Path) -> Iterator[Path]:
    """The files in a folder; those of a database only once."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = {file for file in found if file.is_file()}
    for file in sorted(files):
        name = file.name
        ends = [end for end in _BESIDE if name.endswith(end)]
        if not any(file.with_name(name.removesuffix(end)) in files for end in ends):
            yield file


def _copy(source: Path, target: Path) -> bool:
    """Copies a file; returns whether it is a database."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with translated(source):
        with source.open("rb") as file:
            database = file.read(len(_SQLITE)) == _SQLITE
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if not database:
            shutil.copyfile(source, target)
            return False
        with (  # not as `copied` does: that is for hiso's own databases, this may be any
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=60)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            (said,) = new.execute("PRAGMA integrity_check").fetchone()
    if said != "ok":
        raise ProtocolError(f"{source} is damaged: {said}")
    return True
