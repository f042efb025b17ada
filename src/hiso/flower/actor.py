"""The endpoint of a simulation on Flower: the worker lives in the Ray actor itself.

Each actor holds one replica, which serves all clients that Ray gives it, and their shares of the
data. An actor that has not seen the last rounds says so, and is sent the records.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

from hiso.flower.envelope import Envelope
from hiso.flower.worker import Worker
from hiso.run.settings import parse_settings


def answer(request: Envelope, client: int, settings: str) -> Envelope:
    """The answer of `client`; `settings` is the JSON that the server has too."""
    return _worker(settings).handle(request, client)


@cache
def _worker(settings: str) -> Worker:
    """This process's worker; its copies of logs lie among the machine's temporary files."""
    folder = Path(tempfile.mkdtemp(prefix="hiso-actor-"))
    return Worker(parse_settings(json.loads(settings)), folder, own=None, alive=lambda: None)
