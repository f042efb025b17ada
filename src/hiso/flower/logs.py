"""Logs and file modes of the processes of a deployment."""

from __future__ import annotations

import logging
import os
from pathlib import Path


def keep_private(folder: Path) -> None:
    """Makes the folder; it and all files that this process makes are for its owner alone."""
    os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def log_to(path: Path) -> None:
    """Logs to a file and to the terminal, and replaces handlers that a library has set up."""
    handlers = [logging.FileHandler(path), logging.StreamHandler()]
    for handler in handlers:
        handler.setLevel(logging.INFO)  # libraries may set lower levels
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        handlers=handlers,
        force=True,
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
