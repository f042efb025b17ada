"""The client side of a simulation on Flower: the worker runs inside the Ray actor.

Each actor has one replica for all clients that Ray assigns to it, and their shares of the data. An
actor that lacks the records of the last rounds reports this, and the server sends them.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from hiso.flower.envelope import Envelope
from hiso.flower.worker import Worker
from hiso.ring.site import Site
from hiso.ring.site_settings import SiteSettings
from hiso.run.settings import parse_settings


def answer(request: Envelope, client: int, settings: str) -> Envelope:
    """The answer of `client`; `settings` is the same JSON as at the server."""
    return _worker(settings).handle(request, [client])


@cache
def _worker(settings: str) -> Worker:
    """The worker of this process; its copies of logs are in the machine's temporary folder.

    Batches and losses are those of a simulation in one process.
    """
    folder = Path(tempfile.mkdtemp(prefix="hiso-actor-"))
    site = Site(folder, SiteSettings(batches="seed", report_loss="exact"))
    parsed = parse_settings(json.loads(settings))
    return Worker(parsed, folder, own=None, alive=lambda: None, site=site)
