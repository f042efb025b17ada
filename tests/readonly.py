"""A folder on a read-only medium, for the length of a command."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files of a folder, with their times and contents."""
    every = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in every}


def run_read_only(folder: Path, command: Sequence[str], cwd: Path) -> str:
    """Standard output of a command that finds `folder` read-only, and leaves it as it was.

    Permissions suffice, but not for root: a mount that only the command sees does.
    """
    if not os.geteuid():
        mount = ["unshare", "-rm", "sh", "-c", _MOUNT, str(folder)]
        if subprocess.run([*mount, "true"], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        command = [*mount, *command]
    before = files(folder)
    _permit(folder, 0o444)
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    finally:
        _permit(folder, 0o644)
    assert done.returncode == 0, done.stderr
    assert files(folder) == before
    return done.stdout


def _permit(folder: Path, mode: int) -> None:
    for path in folder.rglob("*"):
        path.chmod(mode | (0o111 if path.is_dir() else 0))
    folder.chmod(mode | 0o111)
