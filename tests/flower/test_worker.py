"""A worker alone: as a real process with a SuperLink, and what it refuses before it starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from hiso.flower.daemon import Resident
from hiso.flower.envelope import Envelope
from hiso.run.api import simulate

from .conftest import simulated_site
from .federation import ROOT, Deployment, write_toml

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]
WATCHDOG = 10


@pytest.fixture
def site(tmp_path, settings):
    """A place for processes, and the settings of a run with one client."""
    site = Deployment(tmp_path / "s")
    write_toml(site.folder / "settings.toml", settings | {"clients": 1, "sample": 1, "rounds": 4})
    try:
        yield site
    finally:
        site.close()


@pytest.fixture
def expected(settings, tmp_path):
    """The summary of that run as a simulation."""
    only = settings | {"clients": 1, "sample": 1, "rounds": 4, "clip": 3.0}
    return simulate(out=tmp_path / "simulated", dev_examples=4, test_examples=4, **only)


def start_unlucky(site: Deployment, how: str, watchdog: int) -> Path:
    """Starts SuperLink and worker 0, as unlucky.py does; the worker's folder."""
    folder = site.folder / "w0"
    simulated_site(folder)
    site.superlink()
    site.start(
        "unlucky", "python", "-m", "tests.flower.unlucky", how, site.address(),
        site.folder / "settings.toml", folder, watchdog, folder=ROOT,
    )  # fmt: skip
    return folder


def test_the_watchdog_ends_a_worker_that_hangs(site, expected):
    """It says where it stood, its process fails, and the next one goes on in the same round."""
    folder = start_unlucky(site, "hang", WATCHDOG)
    site.serve("run", "--round-seconds", 200)
    stuck = {"clients": [0], "connected": True, "doing": "round", "last_error": ""}
    site.wait("hang", lambda: stuck.items() <= site.status(0).items())
    site.wait("end of the worker", lambda: site.processes["unlucky"].poll() == 1, 120)
    assert site.status(0) == {}
    log = (folder / "worker.log").read_text()
    assert f"Timeout (0:00:{WATCHDOG})!" in log
    where = log[log.index("Timeout") :]
    assert "in stand_still" in where
    assert "in _compute" in where
    at = site.position("run")
    assert 0 < at < 4

    site.worker(0, "--share")
    assert site.summary("run")["digest"] == expected["digest"]
    assert "client 0 is unreachable" in (site.folder / "run" / "server.log").read_text()


def test_a_worker_that_dies_during_an_upload_stops_nobody(site, expected):
    """The server gives the answer up, and the next worker sends it again."""
    start_unlucky(site, "die", 600)
    site.serve()
    site.wait("end of the worker", lambda: site.processes["unlucky"].poll() == 0)
    assert site.position("run") < 4
    site.worker(0, "--share")
    assert site.summary("run")["digest"] == expected["digest"]
    assert "the same plan again, the same answer" in site.output("worker0")


def test_a_request_that_comes_again_waits_for_the_same_answer(tmp_path):
    resident = Resident(tmp_path, [0], WATCHDOG)
    first = resident.answer(Envelope("round", {"a": 1}, b"plan"))
    assert resident.answer(Envelope("round", {"a": 1}, b"plan")) is first
    assert resident.answer(Envelope("round", {"a": 1}, b"newer")) is not first


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--superlink", "a:1"], "--insecure"),
        (["--superlink", "a:1", "--insecure", "--ca", "x"], "--insecure"),
        (["--superlink", "a:1", "--ca", "x"], "--insecure"),
        (["--superlink", "http://a:1", "--insecure"], "HOST:PORT"),
        (["--superlink", "a", "--insecure"], "HOST:PORT"),
        (["--superlink", "a:1", "--ca", "CA", "--key", "missing"], "ssh-keygen"),
        (["--superlink", "a:1", "--ca", "CA", "--key", "RSA"], "ssh-keygen"),
        (["--superlink", "a:1", "--ca", "missing", "--key", "KEY"], "no certificate"),
        (["--superlink", "a:1", "--ca", "KEY", "--key", "KEY"], "no certificate"),
    ],
)
def test_a_way_that_cannot_work_is_refused_at_once(hiso, tmp_path, settings, flags, said):
    write_toml(tmp_path / "settings.toml", settings)
    for name, kind in (("KEY", "ecdsa"), ("RSA", "rsa")):
        command = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", tmp_path / name]
        subprocess.run(command, check=True)
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=x"]
    command += ["-keyout", tmp_path / "ca.key", "-out", tmp_path / "CA"]
    subprocess.run(command, check=True, capture_output=True)
    flags = [
        tmp_path / flag if re.fullmatch("CA|KEY|RSA|missing", flag) else flag for flag in flags
    ]
    done = hiso(
        "worker", "start", tmp_path / "settings.toml", "--client", 0, "--folder", tmp_path / "w",
        *flags,
    )  # fmt: skip
    assert done.code == 2
    assert said in done.err
