"""A site executes nothing that it is sent. The counterpart is a SuperNode, which does."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from .federation import BIN, Deployment, free_port, write_toml

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]
STRANGER = Path(__file__).parent / "stranger"


@pytest.fixture
def site(tmp_path, settings):
    site = Deployment(tmp_path / "s")
    write_toml(site.folder / "settings.toml", settings | {"clients": 1, "sample": 1, "rounds": 2})
    site.env["STRANGER_TARGET"] = str(site.folder / "executed")
    site.superlink()
    try:
        yield site
    finally:
        site.close()


def run_strangers_app(site: Deployment, contents: int) -> list[str]:
    """What its server part prints once its messages, two of each content, have been answered."""
    config = ("--run-config", f"contents={contents}")
    site.start("stranger", BIN / "flwr", "run", STRANGER, *config, "--stream")
    site.wait("answers", lambda: "ALL ANSWERED" in site.output("stranger"), 120)
    return [line for line in site.output("stranger").splitlines() if line.startswith("ANSWER")]


def test_another_app_gets_errors_from_a_worker_and_nothing_else(site):
    site.worker(0, "--share")
    site.ready(0)
    answers = run_strangers_app(site, 5)
    assert answers == ["ANSWER error"] * 10
    worker = psutil.Process(site.processes["worker0"].pid)
    assert worker.children(recursive=True) == []
    assert not (site.folder / "executed").exists()
    assert "a message is refused" in (site.folder / "w0" / "worker.log").read_text()

    site.serve("run")
    assert site.summary("run")["rounds"] == 2
    assert worker.children(recursive=True) == []


def test_a_supernode_executes_it_and_is_no_site(site):
    """So the app above would do harm; and hiso's server is told what to start instead."""
    site.start(
        "node", "flower-supernode", "--insecure", "--superlink", site.address(),
        "--port", free_port(),
    )  # fmt: skip
    site.wait("node", lambda: "Activated" in site.output("superlink"))
    run_strangers_app(site, 1)
    assert (site.folder / "executed").read_text() == "executed"
    site.serve("run")
    log = site.folder / "run" / "server.log"
    site.wait("refusal", lambda: log.exists() and "start `hiso worker` instead" in log.read_text())
