"""The thread of a site that speaks with the SuperLink: pulls requests, and sends the answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from flwr.app import Error, RecordDict
from flwr.common.constant import ErrorCode

from hiso.core.plain import plain
from hiso.errors import ProtocolError
from hiso.flower.envelope import RESTARTED, Envelope, pack, read_record
from hiso.flower.fleet import Away, Ended, Fleet, Request

log = logging.getLogger(__name__)

_POLLS = (0.2, 3.0)
"""Shortest and longest time between two looks for a message, in seconds."""
_QUIET = 20
"""The time between two looks is this part of the time since the last message."""
_BUSY = 10
"""A SuperLink is left in peace for so many times the seconds that the last look took."""
_PAUSES = (0.2, 3.0)
"""First and longest pause while the SuperLink cannot be used, in seconds."""


class Network:
    """Keeps a site connected to the SuperLink, whatever happens to it.

    Attributes:
        trouble: Why there is no connection; empty if there is one.
    """

    def __init__(
        self,
        fleet: Fleet,
        answer: Callable[[Envelope], Future[Envelope]],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Args: the connection; what answers; called when `trouble` has changed."""
        self._fleet, self._answer, self._changed = fleet, answer, changed
        self._ready: deque[tuple[Request, RecordDict | Error]] = deque()
        self._claimed: list[Request] = []
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._last, self._pause = time.monotonic(), _PAUSES[0]
        self._said: set[str] = set()
        self._refused: set[str] = set()
        self.trouble = "not connected yet"

    def run(self) -> None:
        """Works until `stop`, then leaves the SuperLink."""
        restarted = pack(Envelope.of_error(RESTARTED, "the worker was restarted: ask again"))
        self._ready.extend((request, restarted) for request in self._fleet.unanswered.values())
        while not self._stopping.is_set():
            try:
                self._fleet.join()
                wait = self._step()
                if self.trouble:
                    self._connected()
            except Away as error:
                wait = self._disconnected(str(error))
            self._wake.wait(wait)
            self._wake.clear()
        self._fleet.leave()

    def stop(self) -> None:
        """Makes `run` end; for any thread."""
        self._stopping.set()
        self._wake.set()

    def _step(self) -> float:
        """Sends what is ready, looks for one message; seconds until the next look."""
        self._send()
        began = time.monotonic()
        if (request := self._fleet.pull()) is not None:
            self._claimed.append(request)
        took = time.monotonic() - began
        for request in list(self._claimed):
            if self._take(request):
                self._claimed.remove(request)
                self._last = time.monotonic()
        self._send()
        now, (shortest, longest) = time.monotonic(), _POLLS
        wait = min(max(shortest, (now - self._last) / _QUIET), longest)
        return max(wait, min(_BUSY * took, longest))

    def _take(self, request: Request) -> bool:
        """Passes a request on; whether it was complete. Whatever is not from hiso gets an error."""
        try:
            if not self._fleet.may_answer(request):
                return True
            if (record := self._fleet.content(request)) is None:
                return False
            envelope = read_record(record)
        except (ProtocolError, Ended) as error:
            reason = f"a hiso worker answers hiso's server only: {error}"
            if (said := plain(error)) not in self._refused:
                log.warning("a message is refused: %s", said)
                self._refused.add(said)
            self._ready.append((request, Error(ErrorCode.MESSAGE_UNAVAILABLE, reason)))
            return True

        def done(future: Future[Envelope]) -> None:
            self._ready.append((request, pack(future.result())))
            self._wake.set()

        self._answer(envelope).add_done_callback(done)
        return True

    def _send(self) -> None:
        while self._ready:
            request, content = self._ready[0]
            try:
                if not self._fleet.may_answer(request):
                    raise Ended("it is too late")
                self._fleet.answer(request, content)
            except Ended as error:
                log.warning("an answer is dropped: %s", plain(error))
                self._fleet.forget(request)
            self._ready.popleft()
            self._last = time.monotonic()

    def _connected(self) -> None:
        log.info("connected to the SuperLink as node %d", self._fleet.node)
        self._pause, self._said = _PAUSES[0], set()
        self.trouble = ""
        self._changed()

    def _disconnected(self, reason: str) -> float:
        if reason not in self._said:
            log.warning("no use of the SuperLink: %s. Trying again until it works", plain(reason))
            self._said.add(reason)
            self.trouble = plain(reason)
            self._changed()
        pause, self._pause = self._pause, min(2 * self._pause, _PAUSES[1])
        return pause
