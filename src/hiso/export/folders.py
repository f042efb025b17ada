"""Writes folders completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hiso.errors import RunConflict
from hiso.run.folder import storing


def check_free(out: Path) -> None:
    """Checks that nothing would be overwritten.

    Raises:
        RunConflict: There is a file, or a folder that is not empty.
        StorageError: The folder cannot be read.
    """
    with storing(out):
        taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken:
        raise RunConflict(f"{out} exists and is not empty: name another folder, or remove it")


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end; after an error it is deleted.

    Raises:
        RunConflict: `out` exists already.
        StorageError: The disk is full, or the place is not writable.
    """
    check_free(out)
    out = out.resolve()
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as room:
            partial = Path(room) / out.name
            partial.mkdir()
            yield partial
            os.replace(partial, out)
