"""Logging of the processes of a deployment."""

from __future__ import annotations

import logging
from pathlib import Path


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
