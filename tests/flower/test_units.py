"""The units of deploy/systemd/, as systemd-analyze reads them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .federation import ROOT

UNITS = ["hiso-superlink", "hiso-proxy", "hiso-serve@first", "hiso-worker@site0"]


@pytest.fixture
def root(tmp_path) -> Path:
    """A system with the units, and with what they start."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    shutil.copytree(ROOT / "deploy" / "systemd", tmp_path / "etc" / "systemd" / "system")
    shutil.copytree(ROOT / "deploy", tmp_path / "opt" / "hiso" / "deploy")
    command = tmp_path / "opt" / "hiso" / ".venv" / "bin" / "hiso"
    command.parent.mkdir(parents=True)
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for name in ("sysinit.target", "basic.target", "shutdown.target"):
        (tmp_path / "etc" / "systemd" / "system" / name).write_text("[Unit]\n")
    return tmp_path


def analyze(root: Path, unit: str, *words: str) -> str:
    command = ["systemd-analyze", "--root", root, "--no-pager", *words, f"{unit}.service"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def settings(root: Path, unit: str) -> dict[str, bool]:
    """Which of the settings that systemd-analyze knows are on."""
    said = analyze(root, unit, "security", "--offline=true", "--threshold=20", "--json=short")
    return {one["json_field"]: one["set"] for one in json.loads(said)}


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_is_valid_and_sandboxed(root, unit):
    assert analyze(root, unit, "verify", "--man=no") == ""
    said = analyze(root, unit, "security", "--offline=true", "--threshold=20")
    found = re.search(r"exposure level for .*: ([\d.]+)", said)
    assert found is not None
    assert float(found[1]) <= 1.5


@pytest.mark.parametrize("unit", UNITS)
def test_only_a_worker_may_run_code_that_it_writes(root, unit):
    """The kernels are compiled when they are used; what the sandbox says overrides a unit."""
    assert settings(root, unit)["MemoryDenyWriteExecute"] == (unit != "hiso-worker@site0")


def test_what_an_operator_edits_overrides_the_sandbox(root):
    """As `systemctl edit` stores it; files are read in the order of their names."""
    unit = "hiso-worker@site0"
    assert settings(root, unit)["PrivateDevices"]
    edited = root / "etc" / "systemd" / "system" / f"{unit}.service.d"
    edited.mkdir()
    (edited / "override.conf").write_text("[Service]\nPrivateDevices=no\n")
    assert not settings(root, unit)["PrivateDevices"]
