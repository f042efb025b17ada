"""A whole deployment on the loopback: SuperLink, SuperNodes, workers, server. Real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Deployment:
    """Processes by name, in a folder; each writes NAME.out. All end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
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
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05",
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

    def superlink(self, *arguments: object) -> None:
        self.start(
            "superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1",
            "--port", self.port, "--database", self.folder / "state.db",
            *arguments,
        )  # fmt: skip

    def supernode(self, index: int, worker: Path | None = None, port: int | None = None) -> None:
        self.start(
            f"supernode{index}", "flower-supernode", "--insecure",
            "--superlink", f"127.0.0.1:{port or self.port}", "--port", free_port(),
            "--node-config", f'worker="{worker or self.folder / f"w{index}"}"',
        )  # fmt: skip

    def worker(self, index: int, *arguments: object) -> None:
        self.start(
            f"worker{index}", "hiso", "worker", "start", self.folder / "settings.toml",
            "--client", index, "--folder", self.folder / f"w{index}", *arguments,
        )  # fmt: skip

    def serve(self, out: str = "run", *arguments: object) -> None:
        self.start(
            "serve", "hiso", "serve", self.folder / "settings.toml", "--out", out, *arguments
        )

    def wait(self, what: str, test: Callable[[], Any], seconds: float = 90) -> Any:
        """What `test` gives as soon as it is true; shows the logs if that takes too long."""
        end = time.monotonic() + seconds
        while not (found := test()):
            if time.monotonic() > end:
                raise AssertionError(f"no {what} after {seconds} s\n{self.logs()}")
            time.sleep(0.1)
        return found

    def logs(self, last: int = 30) -> str:
        parts: list[str] = []
        for path in sorted(self.folder.glob("*.out")):
            lines = path.read_text(errors="replace").splitlines()[-last:]
            parts.append(f"--- {path.name}\n" + "\n".join(lines))
        return "\n".join(parts)


def write_toml(path: Path, settings: dict[str, Any]) -> None:
    path.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in settings.items()))
