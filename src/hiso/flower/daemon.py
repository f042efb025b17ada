"""The worker as a process, with a socket that only its owner can use, a log and a watchdog.

The main thread computes; each connection has a thread that waits. Status and hello are answered at
any time. If a request arrives again while its answer is being computed, it waits for the same
answer. A newer request replaces the one being computed.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiso.core.measure.backward import Probing
from hiso.errors import ProtocolError
from hiso.flower.envelope import BUSY, Envelope, receive, send
from hiso.flower.local_socket import SOCKET, socket_path
from hiso.flower.worker import Superseded, Worker
from hiso.run.folder import locked
from hiso.run.settings import Settings
from hiso.run.summary import peak_memory

LOG = "worker.log"
log = logging.getLogger(__name__)


class _Job(Future[Envelope]):
    def __init__(self, request: Envelope) -> None:
        super().__init__()
        self.request, self.key = request, request.to_bytes()


class Resident:
    """Answers requests until it is stopped.

    Attributes:
        folder: Its folder, which only the owner may access: socket, log, copies of the logs of
            runs.
    """

    def __init__(self, folder: Path, client: int, watchdog: float) -> None:
        """Args: the folder; the client's number; seconds without progress after which it ends."""
        self.folder, self._client, self._watchdog = folder, client, watchdog
        self._started, self._since = time.time(), time.time()
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._job: _Job | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._answered, self._error = 0, ""

    def run(self, settings: Settings, *, share: bool, probe: Probing = "forward") -> None:
        """Loads, then answers until SIGTERM, SIGINT or a request to stop.

        Args:
            settings: The settings.
            share: Use only the client's share of the data; for data that are the same at all
                clients.
            probe: How the client computes its scalars.

        Raises:
            RunConflict: Another worker runs in the folder.
            HisoError: See `Worker`.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)
        busy = f"a worker runs in {self.folder} already: stop it, or use another folder"
        with (
            locked(self.folder, busy),
            (self.folder / LOG).open("a") as trace,
            self._listening() as door,
        ):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stop())
            self._trace = trace
            own = None if share else self._client
            self._worker = Worker(settings, self.folder, own=own, alive=self._alive, probe=probe)
            self._alive()
            faulthandler.cancel_dump_traceback_later()
            door.listen()
            threading.Thread(target=self._accept, args=(door,), daemon=True).start()
            log.info("client %d is ready, process %d", self._client, os.getpid())
            try:
                self._compute()
            finally:
                self._worker.close()
                log.info("stopped")

    def _stop(self) -> None:
        self._stopping.set()
        self._cancel()

    def _cancel(self) -> None:
        if worker := getattr(self, "_worker", None):
            worker.superseded.set()

    def _alive(self) -> None:
        """Restarts the watchdog; when its time is over, it writes the stack of every thread."""
        faulthandler.dump_traceback_later(self._watchdog, exit=True, file=self._trace)

    def _compute(self) -> None:
        while not self._stopping.is_set():
            try:
                job = self._jobs.get(timeout=0.2)
            except queue.Empty:
                continue
            with self._lock:
                self._worker.superseded.clear()
                self._job, self._since = job, time.time()
            try:
                self._alive()
                answer = self._worker.handle(job.request, self._client)
            except Exception as error:
                log.exception("a defect in hiso or in a library")
                answer = Envelope.of_error(type(error).__name__, f"a defect: {error!r}")
            finally:
                faulthandler.cancel_dump_traceback_later()
            with self._lock:
                self._job, self._since = None, time.time()
                self._answered += 1
                if answer.kind == "error":
                    self._error = answer.facts["reason"]
            if answer.facts.get("error") == Superseded.__name__:
                answer = Envelope.of_error(BUSY, answer.facts["reason"])
            job.set_result(answer)

    def _accept(self, door: socket.socket) -> None:
        while True:
            connection, _ = door.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                send(connection, self._answer(receive(connection)))
            except (OSError, ProtocolError) as error:
                log.warning("a connection broke: %s", error)

    def _answer(self, request: Envelope) -> Envelope:
        match request.kind:
            case "status":
                return Envelope("status", self.status())
            case "hello":
                return self._worker.handle(request, self._client)
            case "stop":
                self._stop()
                return Envelope("status", self.status())
            case _:
                return self._submit(request).result()

    def _submit(self, request: Envelope) -> _Job:
        with self._lock:
            for job in [self._job, *self._jobs.queue]:
                if job is not None and job.key == request.to_bytes():
                    return job
            job = _Job(request)
            self._cancel()
            self._jobs.put(job)
            return job

    def status(self) -> dict[str, Any]:
        """The worker's identity and present activity, for display and programs."""
        with self._lock:
            job, since = self._job, self._since
        return {
            "client": self._client,
            "process": os.getpid(),
            "up_seconds": round(time.time() - self._started, 1),
            "doing": "waiting" if job is None else job.request.kind,
            "since_seconds": round(time.time() - since, 1),
            "run": self._worker.run,
            "position": self._worker.position,
            "answered": self._answered,
            "last_error": self._error,
            "peak_memory_bytes": peak_memory(),
        }

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        path = self.folder / SOCKET
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            before = os.umask(0o177)
            try:
                door.bind(socket_path(self.folder))
            finally:
                os.umask(before)
            try:
                yield door
            finally:
                path.unlink(missing_ok=True)
