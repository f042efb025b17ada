"""Starts a run with Flower's command line, shows its log, and reads its result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hiso.errors import ProtocolError

_FLWR = str(Path(sys.executable).parent / "flwr")


@dataclass(frozen=True)
class Outcome:
    """The result of a Flower run.

    Attributes:
        status: "finished:completed", or something else.
        details: The reason, if Flower gives one.
        bytes_up: Bytes that sites sent to the SuperLink for this run, as counted by Flower:
            complete messages, without HTTP headers, encryption, and polling for work.
        bytes_down: The same in the other direction.
    """

    status: str
    details: str
    bytes_up: int
    bytes_down: int


class Submission:
    """A run that Flower has accepted.

    Attributes:
        run: Flower's number of the run.
    """

    def __init__(self, config: Mapping[str, Any], superlink: str | None) -> None:
        """Submits the app to a SuperLink.

        Args:
            config: Values of the app's configuration.
            superlink: Name of a connection in Flower's config.toml; None for its default.

        Raises:
            ProtocolError: The SuperLink cannot be reached, or refuses the app.
        """
        self._superlink = [superlink] if superlink else []
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "run.toml"  # a JSON string is also a TOML string
            path.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in config.items()))
            app = str(files("hiso.flower") / "app")
            told = self._ask("run", app, *self._superlink, "--run-config", str(path))
        self.run = str(told["run-id"])

    def watch(self, *, show: bool = True) -> None:
        """Waits until the run has ended, and shows its log meanwhile if `show`.

        Raises:
            ProtocolError: The connection broke.
        """
        command = [_FLWR, "log", self.run, *self._superlink, "--stream"]
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        done = subprocess.run(command, env=env, capture_output=not show, text=True)
        if done.returncode:
            said = "see what Flower says above" if show else f"{done.stdout}{done.stderr}".strip()
            raise ProtocolError(
                f"run {self.run} cannot be watched any longer: {said}. "
                "If the SuperLink has died, start it and then the same command again"
            )

    def outcome(self) -> Outcome:
        """The run's result, or its present state.

        Raises:
            ProtocolError: The SuperLink cannot be reached.
        """
        (run,) = self._ask("list", *self._superlink, "--run-id", self.run)["runs"]
        traffic = run["network-traffic"]
        return Outcome(
            run["status"],
            run["status-details"],
            traffic["inbound-bytes"],
            traffic["outbound-bytes"],
        )

    def _ask(self, *words: str) -> dict[str, Any]:
        command = [_FLWR, *words, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True)
        try:
            told = json.loads(done.stdout)
        except ValueError:
            told = {}
        if done.returncode or not told.get("success"):
            said = told.get("error-message") or f"{done.stdout}{done.stderr}".strip()
            raise ProtocolError(f"flwr {words[0]} has failed: {said}")
        return told
