"""Tells readers of the run's folder what the server does now: see `ServerStatus`."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from hiso.flower.sites import Sites
from hiso.run.server_status import Doing, ReplyTime, ServerStatus, write_server_status

_EVERY = 1.0
"""Seconds from one writing to the next."""


class Present:
    """Writes `status.json` in the folder of a run.

    Attributes:
        asked: The clients that are asked in the open round.
        replies: How each client answered last.
    """

    def __init__(self, folder: Path, sites: Sites) -> None:
        self._folder, self._sites = folder, sites
        self.asked: Collection[int] = ()
        self.replies: dict[int, ReplyTime] = {}
        self._doing: Doing | None = None
        self._due = 0.0

    def tell(self, doing: Doing) -> None:
        """Writes the file if it is a second old, or says something else; to be called often."""
        if time.monotonic() >= self._due or doing != self._doing:
            self._doing, self._due = doing, time.monotonic() + _EVERY
            here, asked = sorted(self._sites.by_client), sorted(self.asked)
            status = ServerStatus(time.time(), doing, asked, here, self.replies)
            with suppress(OSError):  # a full disk ends the run at its next round, with a message
                write_server_status(self._folder, status)
