"""Folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hiso.errors import RunConflict
from hiso.run.folder import storing


def check_free(out: Path) -> None:
    """Makes sure that nothing would be overwritten.

    Raises:
        RunConflict: There is a file, or a folder with something in it.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunConflict(f"{out} exists and is not empty: name another folder, or remove it")


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; after an error, nothing is there.

    Raises:
        RunConflict: Something is at `out` already.
        StorageError: The disk is full, or there is no writing there.
    """
    check_free(out)
    out = out.absolute()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        try:
            yield partial
            os.replace(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # it has become `out`, or is of no use
