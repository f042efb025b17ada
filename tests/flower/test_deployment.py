"""SuperLink, workers and server as real processes, held against the simulation."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hiso.core.identity import Identity
from hiso.flower.envelope import Envelope, split
from hiso.flower.worker import Worker
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.api import simulate
from hiso.run.settings import parse_settings

from .federation import BIN

pytestmark = [pytest.mark.flower, pytest.mark.timeout(600)]


def test_a_deployment_gives_the_same_model_as_the_simulation(deployment, settings, tmp_path):
    """Bytes are what others have counted; and both may be rolled back and changed alike."""
    tcp, simulated = deployment.proxy, tmp_path / "simulated"
    before = (tcp.up, tcp.down)
    deployment.serve("equal")
    asked = settings | {"dev_examples": 4, "test_examples": 4, "clip": 3.0}  # the default of serve
    expected = simulate(out=simulated, **asked)
    summary = deployment.summary("equal")
    assert summary["digest"] == expected["digest"]
    assert summary["bytes_up"] == expected["bytes_up"]
    assert summary["bytes_down"] <= expected["bytes_down"]
    assert summary["peak_memory_bytes"] < 300 * 2**20
    print(f"\n{summary['seconds_per_round']:.1f} s a round, server {summary['peak_memory_bytes']}")
    for way, passed in (("up", tcp.up - before[0]), ("down", tcp.down - before[1])):
        each = {
            kind: summary["per_round_and_worker"][f"{kind}bytes_{way}"]
            for kind in ("", "message_", "sent_")
        }
        assert each[""] < each["message_"] < each["sent_"]
        assert each["message_"] < 1500
        first = deployment.messages("equal", 0)[way == "down"]
        assert 0 < first < passed
        print(f"bytes {way} per round and worker: {each}; client 0: {first}, on TCP {passed}")

    deployment.serve("equal", "--rollback", 2, "--change", "lr=0.005")
    changed = simulate(out=simulated, rollback=2, change={"lr": 0.005})
    summary = deployment.summary("equal")
    assert summary["digest"] == changed["digest"] != expected["digest"]
    assert (summary["settings"]["lr"], summary["rounds"]) == (0.005, 4)

    def log_of(folder: Path) -> list[bytes]:
        with Ledger.open(folder / "ledger.sqlite") as ledger:
            ledger.verify()
            return [record.to_bytes() for record in ledger.records()]

    records = log_of(simulated)
    assert log_of(deployment.folder / "equal") == records
    for index in range(3):  # they had folded what was taken back
        folder = deployment.folder / f"w{index}"
        assert log_of(folder / f"run-{summary['run'][:16]}") == records
        assert "back to position 2" in (folder / "worker.log").read_text()


def test_only_its_owner_may_read_a_worker_s_files(deployment):
    deployment.ready(0)
    folder = deployment.folder / "w0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("status.json", "node.key", "node.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600


def test_a_worker_that_joins_late_catches_up_by_scalars(deployment, settings):
    """Twenty rounds by clients 0 and 1 alone; then client 2 comes, and all go on, on Flower."""
    before = deployment.folder / "before"
    before.mkdir()
    worker = Worker(parse_settings(settings), before, own=None, alive=lambda: None)
    identity = worker.hello([0], None).facts["identity"]
    out = deployment.folder / "late"
    out.mkdir()
    parsed = parse_settings(settings | {"rounds": 23})
    method = parsed.make_method()
    with Ledger.create(
        out / "ledger.sqlite", Identity.parse(identity), parsed.with_hyper(method).model_dump()
    ) as ledger:
        two = replace(parsed.make_rounds(method), clients=2, sample=2)
        server = Server(ledger, two)
        while ledger.position < 20:
            for plan in server.ask():
                request = Envelope("round", {"identity": identity}, plan_to_bytes(plan))
                answer = worker.handle(request, [plan.client])
                assert server.tell(reply_from_bytes(*split(answer.body))).accepted
            server.close()
    worker.close()
    for index in (0, 1):
        (log,) = before.glob("run-*")
        shutil.copytree(log, deployment.folder / f"w{index}" / log.name, dirs_exist_ok=True)
    deployment.serve("late", "--rounds", 23)
    summary = deployment.summary("late")
    statuses = [deployment.status(index) for index in range(3)]
    assert [s["position"] for s in statuses] == [23, 23, 23]
    with Ledger.open(out / "ledger.sqlite") as ledger:
        assert any(2 in row.clients for row in ledger.rounds(20))
        assert not any(row.set_aside for row in ledger.rounds())
    assert summary["machine"]["clients_at_the_end"] == 3
    assert summary["digest"] is not None


def test_a_worker_stops_gracefully_and_goes_on(deployment, settings, hiso):
    folder = deployment.folder / "w0"
    before = deployment.ready(0)
    done = hiso("worker", "stop", folder)
    assert done.code == 0, done.err
    assert deployment.processes["worker0"].wait(30) == 0
    assert "no worker runs" in hiso("worker", "status", folder).err
    deployment.worker(0, "--share", counted=True)
    after = deployment.ready(0)
    assert (after["run"], after["position"]) == (before["run"], before["position"])
    assert os.environ.get("HF_HUB_OFFLINE")
    assert Path(folder / "worker.log").read_text().count("is ready") >= 2


def test_a_run_that_was_stopped_is_no_error(deployment):
    """And the same command continues it; a supervisor can tell it from a failure."""
    deployment.serve("stopped", "--rounds", 1000)
    deployment.wait("round", lambda: deployment.position("stopped") >= 1)
    run = re.findall(r"`flwr stop (\d+)`", deployment.output("serve"))[-1]
    subprocess.run([BIN / "flwr", "stop", run], env=deployment.env, check=True)
    assert deployment.processes["serve"].wait(60) == 130
    more = f"rounds={deployment.position('stopped') + 3}"
    deployment.start("serve", "hiso", "serve", "--out", "stopped", "--change", more)
    assert deployment.summary("stopped")["digest"] is not None
