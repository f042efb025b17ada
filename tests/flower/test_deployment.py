"""SuperLink, SuperNodes, workers and server as real processes, held against the simulation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import psutil
import pytest

from hiso.errors import ProtocolError
from hiso.federation.ledger import Ledger
from hiso.federation.server import Server
from hiso.federation.wire import plan_to_bytes, reply_from_bytes
from hiso.flower.envelope import Envelope
from hiso.flower.worker import Worker
from hiso.run.api import simulate
from hiso.run.settings import parse_settings

from .evil import LIES
from .federation import Deployment

pytestmark = [pytest.mark.flower, pytest.mark.timeout(600)]


def summary_of(deployment: Deployment, out: str, seconds: float = 180) -> dict:
    path = deployment.folder / out / "summary.json"
    deployment.wait(f"{out}/summary.json", path.is_file, seconds)
    return json.loads(path.read_text())


def position(deployment: Deployment, out: str) -> int:
    path = deployment.folder / out / "ledger.sqlite"
    if not path.is_file():
        return 0
    try:
        with Ledger.open(path) as ledger:
            return ledger.position
    except ProtocolError:
        return 0  # it is being made


def worker_status(deployment: Deployment, index: int) -> dict:
    from hiso.flower.dial import ask

    return ask(deployment.folder / f"w{index}", Envelope("status"), 5).facts


def server_process(deployment: Deployment) -> psutil.Process:
    """The `flwr-serverapp` of this SuperLink."""
    address = f"127.0.0.1:{deployment.port}"
    return deployment.wait(
        "flwr-serverapp",
        lambda: next(
            (
                p
                for p in psutil.process_iter(["cmdline"])
                if p.info["cmdline"]
                and address in p.info["cmdline"]
                and any("flwr-serverapp" in word for word in p.info["cmdline"])
            ),
            None,
        ),
    )


def test_a_deployment_gives_the_same_model_as_the_simulation(deployment, settings, tmp_path):
    deployment.serve("equal")
    expected = simulate(out=tmp_path / "simulated", dev_examples=4, test_examples=4, **settings)
    summary = summary_of(deployment, "equal")
    assert summary["digest"] == expected["digest"]
    assert summary["bytes_up"] == expected["bytes_up"]
    assert summary["bytes_down"] <= expected["bytes_down"]
    assert summary["message_bytes_up"] > summary["bytes_up"]
    each = summary["message_bytes_per_round_and_worker"]
    assert 8 < each["up"] < 500
    assert 8 < each["down"] < 1500
    assert summary["peak_memory_bytes"] < 300 * 2**20
    print(f"\n{summary['seconds_per_round']:.1f} s a round, server {summary['peak_memory_bytes']}")


def test_only_its_owner_may_talk_to_a_worker(deployment):
    deployment.wait("worker", lambda: worker_status(deployment, 0).get("process"), 60)
    folder = deployment.folder / "w0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "worker.sock").stat().st_mode) == 0o600


def test_a_worker_that_joins_late_catches_up_by_scalars(deployment, settings):
    """Twenty rounds by clients 0 and 1 alone; then client 2 comes, and all go on, on Flower."""
    before = deployment.folder / "before"
    before.mkdir()
    worker = Worker(parse_settings(settings), before, own=None, alive=lambda: None)
    identity = worker.hello(0, None).facts["identity"]
    out = deployment.folder / "late"
    out.mkdir()
    parsed = parse_settings(settings | {"rounds": 23})
    method = parsed.make_method()
    with Ledger.create(
        out / "ledger.sqlite", identity, parsed.with_hyper(method).model_dump()
    ) as ledger:
        server = Server(ledger, parsed.make_rounds(method), curvature=False)
        while ledger.position < 20:
            for plan in server.ask():
                request = Envelope("round", {"identity": identity}, plan_to_bytes(plan))
                if plan.client < 2:
                    answer = worker.handle(request, plan.client)
                    assert server.tell(reply_from_bytes(answer.body)).accepted
            server.close()
    worker.close()
    for index in (0, 1):
        shutil.copytree(before, deployment.folder / f"w{index}", dirs_exist_ok=True)
    deployment.serve("late", "--rounds", 23)
    summary = summary_of(deployment, "late")
    statuses = [worker_status(deployment, index) for index in range(3)]
    assert [s["position"] for s in statuses] == [23, 23, 23]
    with Ledger.open(out / "ledger.sqlite") as ledger:
        assert any(2 in row.clients for row in ledger.rounds(20))
        assert not any(row.set_aside for row in ledger.rounds())
    assert summary["machine"]["clients_at_the_end"] == 3
    assert summary["digest"] is not None


def recovered(deployment: Deployment, what: str, out: str, since: float, at: int) -> None:
    deployment.wait(f"round after {what}", lambda: position(deployment, out) > at, 180)
    print(f"\n{what}: next round committed after {time.monotonic() - since:.1f} s")


def test_every_process_may_be_killed(deployment, settings):
    out = "killed"
    command = (out, "--rounds", 7, "--sample", 3, "--round-seconds", 120)
    deployment.serve(*command)

    def reach(round: int) -> int:
        deployment.wait(f"round {round}", lambda: position(deployment, out) >= round, 180)
        return position(deployment, out)

    at = reach(1)
    began = time.monotonic()
    deployment.kill("supernode0")
    deployment.supernode(0)
    recovered(deployment, "SuperNode", out, began, at)

    at, began = position(deployment, out), time.monotonic()
    deployment.kill("worker1")
    deployment.worker(1, "--share")
    recovered(deployment, "worker", out, began, at)

    at, began = position(deployment, out), time.monotonic()
    server_process(deployment).send_signal(signal.SIGKILL)
    deployment.kill("serve")
    deployment.serve(*command)
    recovered(deployment, "ServerApp", out, began, at)

    with Ledger.open(deployment.folder / out / "ledger.sqlite") as ledger:
        before = [record.to_bytes() for record in ledger.records()]
    at, began = len(before), time.monotonic()
    deployment.kill("superlink")
    deployment.kill("serve")
    deployment.superlink()
    deployment.wait("SuperLink", lambda: "startup complete" in deployment.logs(5), 60)
    deployment.serve(*command)
    recovered(deployment, "SuperLink", out, began, at)

    summary = summary_of(deployment, out)
    with Ledger.open(deployment.folder / out / "ledger.sqlite") as ledger:
        ledger.verify()
        assert ledger.position == 7
        assert [record.to_bytes() for record in ledger.records()][: len(before)] == before
        assert not any(row.set_aside for row in ledger.rounds())
    assert summary["digest"] is not None


def test_the_relay_needs_no_torch():
    import subprocess
    import sys

    code = "import hiso.flower.client, sys; print({'torch','numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout


def test_a_worker_stops_gracefully_and_goes_on(deployment, settings, hiso):
    folder = deployment.folder / "w0"
    deployment.wait("worker", lambda: worker_status(deployment, 0).get("process"), 60)
    before = worker_status(deployment, 0)
    done = hiso("worker", "stop", folder)
    assert done.code == 0, done.err
    assert deployment.processes["worker0"].wait(30) == 0
    assert not (folder / "worker.sock").exists()
    assert "no worker answers" in hiso("worker", "status", folder).err
    deployment.worker(0, "--share")
    deployment.wait("worker", lambda: worker_status(deployment, 0).get("process"), 60)
    after = worker_status(deployment, 0)
    assert (after["run"], after["position"]) == (before["run"], before["position"])
    assert os.environ.get("HF_HUB_OFFLINE")
    assert Path(folder / "worker.log").read_text().count("is ready") >= 2


def test_a_worker_that_lies_changes_nothing(deployment):
    evil, root = deployment.folder / "evil", Path(__file__).parents[2]
    evil.mkdir()
    honest = deployment.folder / "w2"
    deployment.kill("supernode2")
    deployment.start("evil", "python", "-m", "tests.flower.evil", evil, honest, folder=root)
    deployment.wait("evil worker", (evil / "worker.sock").exists)
    deployment.supernode(2, worker=evil)
    deployment.serve("lies", "--rounds", len(LIES), "--sample", 3)
    summary = summary_of(deployment, "lies")
    deployment.kill("supernode2")
    deployment.kill("evil")
    deployment.supernode(2)
    with Ledger.open(deployment.folder / "lies" / "ledger.sqlite") as ledger:
        rows, refusals = ledger.rounds(), ledger.refusals()
    assert [row.clients for row in rows] == [[0, 1]] * len(LIES)
    set_aside = {row.round: row.set_aside for row in rows if row.set_aside}
    assert set_aside.keys() == {1}
    assert "has digest" in set_aside[1][2]
    reasons = [reason for _, _, reason in refusals]
    expected = ["nan", "is not the open one", "float32[7, 7]", "malformed", "answered as client 0"]
    assert len(reasons) == len(expected), reasons
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason
    statuses = [worker_status(deployment, index) for index in range(3)]
    assert [s["position"] for s in statuses] == [len(LIES)] * 3
    assert summary["digest"] is not None  # a majority, and replicas are checked in every round
