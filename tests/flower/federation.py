"""A whole deployment on the loopback: SuperLink, workers, server. Real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil

from hiso.errors import ProtocolError
from hiso.flower.status import read_status
from hiso.ring.ledger.ledger import Ledger

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
_PARTS = ("front", "serve", "superlink", "worker")


def free_port() -> int:
    """A port below those that systems lend to outgoing connections, which might take it."""
    while True:
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            return s.getsockname()[1]


def listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class Proxy:
    """Passes TCP on to a port, and counts the bytes."""

    def __init__(self, port: int) -> None:
        self.up, self.down, self._to = 0, 0, port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port = self._door.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)  # wakes the thread up
        self._door.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._door.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            back = threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True)
            back.start()
            self._pass(near, far, "up")
            back.join()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Deployment:
    """Processes by name, in a folder; each writes NAME.out. All end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.proxy = Proxy(self.port)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._orphaned: list[int] = []  # process groups whose leader was killed
        home = folder / "home"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.env = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def start(self, name: str, *arguments: object, folder: Path | None = None) -> None:
        if before := self.processes.pop(name, None):
            before.wait(60)
        command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                command, cwd=folder or self.folder, env=self.env, stdout=out, stderr=out,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """The process alone, as a crash would; those that it started notice by themselves."""
        self._orphaned.append(self.processes[name].pid)
        self.processes[name].send_signal(number)
        self.processes.pop(name).wait()

    def close(self) -> None:
        for process in self.processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for group in self._orphaned:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        end = time.monotonic() + 5
        for process in self.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.proxy.close()

    def superlink(self, *arguments: object) -> None:
        """Returns when it listens."""
        ready = "startup complete"
        before = self.output("superlink").count(ready)
        self.start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1",
            "--port", self.port, *arguments,
        )  # fmt: skip
        self.wait("SuperLink", lambda: self.output("superlink").count(ready) > before)

    def http_proxy(self) -> int:
        """Starts a proxy as large networks have one; its port."""
        port = free_port()
        conf = self.folder / "tinyproxy.conf"
        conf.write_text(f"Port {port}\nListen 127.0.0.1\nAllow 127.0.0.1\nLogLevel Connect\n")
        self.start("tinyproxy", shutil.which("tinyproxy") or "", "-d", "-c", conf)
        self.wait("proxy", lambda: listens(port))
        return port

    def worker(self, index: int | str, *arguments: object, counted: bool = False) -> None:
        """With `counted`, its way to the SuperLink leads through the proxy."""
        self.start(
            f"worker{index}", "hiso", "worker", "start", self.folder / "settings.toml",
            "--client", index, "--folder", self.folder / f"w{index}",
            "--superlink", self.address(counted=counted), "--insecure", *arguments,
        )  # fmt: skip

    def address(self, *, counted: bool = False) -> str:
        return f"127.0.0.1:{self.proxy.port if counted else self.port}"

    def serve(self, out: str = "run", *arguments: object) -> None:
        self.start(
            "serve", "hiso", "serve", self.folder / "settings.toml", "--out", out, *arguments
        )

    def front(self, index: int, *arguments: object) -> Path:
        """Instead of worker 2, one whose answers are altered on their way: see evil.py."""
        folder = self.folder / f"front{index}"
        command = ("python", "-m", "tests.flower.evil", self.address(), folder)
        self.start(
            f"front{index}", *command, self.folder / "settings.toml", *arguments, folder=ROOT
        )
        return folder

    def wait(self, what: str, test: Callable[[], Any], seconds: float = 90) -> Any:
        """What `test` gives as soon as it is true; shows the logs if that takes long.

        A process of the deployment that ended with an error, though nobody killed it, is shown
        at once; those of strangers may.
        """
        end = time.monotonic() + seconds
        while not (found := test()):
            if time.monotonic() > end:
                raise AssertionError(f"no {what} after {seconds} s\n{self.logs()}")
            for name, process in self.processes.items():
                if name.startswith(_PARTS) and (code := process.poll()):
                    raise AssertionError(f"no {what}: {name} ended with {code}\n{self.logs()}")
            time.sleep(0.1)
        return found

    def summary(self, out: str, seconds: float = 180) -> dict[str, Any]:
        """The run's summary, once `hiso serve` has ended well."""
        self.wait(f"end of {out}", lambda: self.processes["serve"].poll() == 0, seconds)
        return json.loads((self.folder / out / "summary.json").read_text())

    def position(self, out: str) -> int:
        """Number of rounds committed."""
        path = self.folder / out / "ledger.sqlite"
        if not path.is_file():
            return 0
        try:
            with Ledger.open(path) as ledger:
                return ledger.position
        except ProtocolError:
            return 0  # it is being made

    def messages(self, out: str, client: int) -> tuple[int, int]:
        """Bytes (up, down) of whole messages, as the server has counted them for one client."""
        query = "SELECT sum(bytes_up), sum(bytes_down) FROM messages WHERE client = ?"
        with closing(sqlite3.connect(self.folder / out / "ledger.sqlite")) as db:
            return db.execute(query, (client,)).fetchone()

    def status(self, index: int | str) -> dict[str, Any]:
        """What a worker says of itself; nothing if it does not run."""
        try:
            return read_status(self.folder / f"w{index}")
        except ProtocolError:
            return {}

    def ready(self, index: int) -> dict[str, Any]:
        """The same, once it is connected."""
        return self.wait(
            f"worker {index}",
            lambda: facts if (facts := self.status(index)).get("connected") else None,
        )

    def output(self, name: str) -> str:
        path = self.folder / f"{name}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def server_process(self) -> psutil.Process:
        """The `flwr-serverapp` of this SuperLink."""
        address = f"127.0.0.1:{self.port}"

        def find() -> psutil.Process | None:
            for process in psutil.process_iter(["cmdline"]):
                words = process.info["cmdline"] or []
                if address in words and any("flwr-serverapp" in word for word in words):
                    return process
            return None

        return self.wait("flwr-serverapp", find)

    def logs(self, last: int = 30) -> str:
        parts: list[str] = []
        for path in sorted(self.folder.glob("*.out")):
            lines = path.read_text(errors="replace").splitlines()[-last:]
            parts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)


def write_toml(path: Path, settings: dict[str, Any]) -> None:
    path.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in settings.items()))
