"""deploy/compose.yaml: the commands that it starts exist with these options."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from .federation import ROOT

FILE = ROOT / "deploy" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]


@pytest.mark.parametrize("profile", ["server", "site"])
def test_compose_accepts_the_file(profile):
    if (command := shutil.which("docker-compose")) is None:
        pytest.skip("needs docker-compose")
    done = subprocess.run(
        [command, "-f", FILE, "--profile", profile, "config"], capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_starts_is_there(name, hiso):
    service = SERVICES[name]
    program, *words = service["command"]
    if program == "hiso":
        commands = words[: 2 if words[0] == "worker" else 1]
        known = hiso(*commands, "--help").out
        for word in words:
            assert not word.startswith("--") or word in known
    else:
        assert (ROOT / "deploy" / Path(program).name).is_file()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_privileges(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
