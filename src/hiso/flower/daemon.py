"""The worker as a process, with a log, a status file and a watchdog.

The main thread computes; another thread speaks with the SuperLink and answers `hello` at any time.
If a request arrives again while its answer is being computed, it waits for the same answer. A newer
request replaces the one being computed.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from hiso.core.measure.backward import Probing
from hiso.flower.access import Access
from hiso.flower.envelope import BUSY, Envelope
from hiso.flower.fleet import Fleet
from hiso.flower.logs import keep_private
from hiso.flower.network import Network
from hiso.flower.status import write_status
from hiso.flower.worker import Superseded, Worker
from hiso.run.folder import locked
from hiso.run.formatting import are
from hiso.run.settings import Settings
from hiso.run.summary import peak_memory

LOG = "worker.log"
_STOPS_WITHIN = 60.0
"""Longest wait for the network thread at the end, in seconds."""
log = logging.getLogger(__name__)


class _Job(Future[Envelope]):
    def __init__(self, request: Envelope) -> None:
        super().__init__()
        self.request, self.key = request, request.to_bytes()


class Resident:
    """Answers requests until it is stopped.

    Attributes:
        folder: Its folder, which only the owner may access: key, status, log, copies of the logs of
            runs.
    """

    def __init__(self, folder: Path, clients: Sequence[int], watchdog: float) -> None:
        """Args: the folder; the clients' numbers; seconds without progress after which it ends."""
        self.folder, self._clients, self._watchdog = folder, tuple(clients), watchdog
        self._started, self._since = time.time(), time.time()
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._job: _Job | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._worker: Worker | None = None
        self._network: Network | None = None
        self._defect: BaseException | None = None
        self._answered, self._error = 0, ""

    def run(
        self, settings: Settings, access: Access, *, share: bool, probe: Probing = "forward"
    ) -> None:
        """Loads, then answers until SIGTERM or SIGINT.

        Args:
            settings: The settings.
            access: The SuperLink.
            share: Use only the clients' shares of the data; for data that are the same at all
                sites.
            probe: How the clients compute their scalars.

        Raises:
            RunConflict: Another worker runs in the folder.
            SettingsError: A key or certificate cannot be read.
            HisoError: See `Worker`.
        """
        keep_private(self.folder)
        busy = f"a worker runs in {self.folder} already: stop it, or use another folder"
        with locked(self.folder, busy, patience=1), (self.folder / LOG).open("a") as trace:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stop())
            self._trace = trace
            self._tell()
            fleet = Fleet(access, self.folder)
            own = None if share else self._clients
            self._worker = Worker(settings, self.folder, own=own, alive=self._alive, probe=probe)
            self._alive()
            faulthandler.cancel_dump_traceback_later()
            self._network = Network(fleet, self.answer, self._tell)
            thread = threading.Thread(target=self._connect, daemon=True)
            thread.start()
            log.info("%s ready, process %d", are(self._clients), os.getpid())
            try:
                self._compute()
            finally:
                self._network.stop()
                thread.join(_STOPS_WITHIN)
                self._worker.close()
                log.info("stopped")
            if self._defect is not None:
                raise self._defect

    def _connect(self) -> None:
        assert self._network is not None
        try:
            self._network.run()
        except BaseException as error:
            log.exception("a defect in hiso or in a library")
            self._defect = error
            self._stop()

    def _stop(self) -> None:
        self._stopping.set()
        self._cancel()

    def _cancel(self) -> None:
        if self._worker is not None:
            self._worker.superseded.set()

    def _alive(self) -> None:
        """Restarts the watchdog; when its time is over, it writes the stack of every thread."""
        faulthandler.dump_traceback_later(self._watchdog, exit=True, file=self._trace)

    def _compute(self) -> None:
        assert self._worker is not None
        while not self._stopping.is_set():
            try:
                job = self._jobs.get(timeout=0.2)
            except queue.Empty:
                continue
            with self._lock:
                self._worker.superseded.clear()
                self._job, self._since = job, time.time()
            self._tell()
            try:
                self._alive()
                answer = self._worker.handle(job.request, self._clients)
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
            self._tell()
            job.set_result(answer)

    def answer(self, request: Envelope) -> Future[Envelope]:
        """The answer to a request, when there will be one; for any thread."""
        if request.kind == "hello":
            assert self._worker is not None
            answer = Future[Envelope]()
            answer.set_result(self._worker.handle(request, self._clients))
            return answer
        with self._lock:
            for job in [self._job, *self._jobs.queue]:
                if job is not None and job.key == request.to_bytes():
                    return job
            job = _Job(request)
            self._cancel()
            self._jobs.put(job)
            return job

    def _tell(self) -> None:
        with self._lock:
            try:
                write_status(self.folder, self._status())
            except OSError as error:
                log.warning("the status cannot be written: %s", error)

    def _status(self) -> dict[str, Any]:
        worker, network = self._worker, self._network
        doing = "loading" if worker is None else self._job.request.kind if self._job else "waiting"
        return {
            "clients": list(self._clients),
            "process": os.getpid(),
            "started": self._started,
            "doing": doing,
            "doing_since": self._since,
            "connected": network is not None and not network.trouble,
            "trouble": "" if network is None else network.trouble,
            "run": None if worker is None else worker.run,
            "position": 0 if worker is None else worker.position,
            "answered": self._answered,
            "last_error": self._error,
            "peak_memory_bytes": peak_memory(),
        }
