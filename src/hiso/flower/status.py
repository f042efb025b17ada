"""What a worker says of itself: `status.json` in its folder, for programs of the same user."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hiso.errors import ProtocolError, RunConflict
from hiso.run.folder import locked, write_text

_STATUS = "status.json"


def write_status(folder: Path, facts: dict[str, Any]) -> None:
    """Replaces the file; readers see the old facts or the new ones."""
    write_text(folder / _STATUS, json.dumps(facts, indent=2) + "\n")


def read_status(folder: Path) -> dict[str, Any]:
    """What the worker that runs in `folder` has written last, with durations until now.

    Raises:
        ProtocolError: No worker runs there.
    """
    nobody = ProtocolError(f"no worker runs in {folder}: start it with `hiso worker start`")
    try:
        facts = json.loads((folder / _STATUS).read_text())
        facts["process"]  # a server's status has none: see `hiso.run.server_status`
    except (OSError, ValueError, KeyError) as error:
        raise nobody from error
    with suppress(RunConflict):
        with locked(folder, "a worker runs here"):
            pass
        raise nobody
    now = time.time()
    facts["up_seconds"] = round(now - facts["started"], 1)
    facts["doing_seconds"] = round(now - facts["doing_since"], 1)
    return facts


def stop_worker(folder: Path) -> int:
    """Asks the worker that runs in `folder` to end; returns the number of its process.

    Raises:
        ProtocolError: No worker runs there.
    """
    process = read_status(folder)["process"]
    os.kill(process, signal.SIGTERM)
    return process
