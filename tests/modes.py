"""File modes."""

from __future__ import annotations

from pathlib import Path


def readable_by_others(folder: Path) -> list[str]:
    """The files and folders, the folder itself included, that not only their owner may use."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    assert len(paths) > 1, folder
    return [str(path) for path in paths if path.stat().st_mode & 0o077]
