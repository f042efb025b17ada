"""SuperLink, SuperNodes, workers and server as real processes, held against the simulation."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import stat
import time
from contextlib import closing
from pathlib import Path

import pytest

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


def messages_of(deployment: Deployment, out: str, client: int) -> tuple[int, int]:
    """Bytes (up, down) of whole messages, as the server has counted them for one client."""
    query = "SELECT sum(bytes_up), sum(bytes_down) FROM messages WHERE client = ?"
    with closing(sqlite3.connect(deployment.folder / out / "ledger.sqlite")) as db:
        return db.execute(query, (client,)).fetchone()


def test_a_deployment_gives_the_same_model_as_the_simulation(deployment, settings, tmp_path):
    """Bytes are what others have counted; and both may be rolled back and changed alike."""
    tcp, simulated = deployment.proxy, tmp_path / "simulated"
    before = (tcp.up, tcp.down)
    deployment.serve("equal")
    expected = simulate(out=simulated, dev_examples=4, test_examples=4, **settings)
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
        first = messages_of(deployment, "equal", 0)[way == "down"]
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


def test_only_its_owner_may_talk_to_a_worker(deployment):
    deployment.ready(0)
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
    summary = deployment.summary("late")
    statuses = [deployment.status(index) for index in range(3)]
    assert [s["position"] for s in statuses] == [23, 23, 23]
    with Ledger.open(out / "ledger.sqlite") as ledger:
        assert any(2 in row.clients for row in ledger.rounds(20))
        assert not any(row.set_aside for row in ledger.rounds())
    assert summary["machine"]["clients_at_the_end"] == 3
    assert summary["digest"] is not None


def recovered(deployment: Deployment, what: str, out: str, since: float, at: int) -> None:
    deployment.wait(f"round after {what}", lambda: deployment.position(out) > at, 180)
    print(f"\n{what}: next round committed after {time.monotonic() - since:.1f} s")


def test_every_process_may_be_killed(deployment, settings):
    out = "killed"
    command = (out, "--rounds", 7, "--sample", 3, "--round-seconds", 120)
    deployment.serve(*command)

    def reach(round: int) -> int:
        deployment.wait(f"round {round}", lambda: deployment.position(out) >= round, 180)
        return deployment.position(out)

    at = reach(1)
    began = time.monotonic()
    deployment.kill("supernode0")
    deployment.supernode(0)
    recovered(deployment, "SuperNode", out, began, at)

    at, began = deployment.position(out), time.monotonic()
    deployment.kill("worker1")
    deployment.worker(1, "--share")
    recovered(deployment, "worker", out, began, at)

    at, began = deployment.position(out), time.monotonic()
    deployment.server_process().send_signal(signal.SIGKILL)
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

    summary = deployment.summary(out)
    with Ledger.open(deployment.folder / out / "ledger.sqlite") as ledger:
        ledger.verify()
        assert ledger.position == 7
        assert [record.to_bytes() for record in ledger.records()][: len(before)] == before
        assert not any(row.set_aside for row in ledger.rounds())
    assert summary["digest"] is not None
    for index in range(3):
        log = (deployment.folder / f"w{index}" / "worker.log").read_text()
        assert re.findall(r"position 7, digest (\w+)", log)[-1] == summary["digest"]


def test_the_relay_needs_no_torch():
    import subprocess
    import sys

    code = "import hiso.flower.client, sys; print({'torch','numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout


def test_a_worker_stops_gracefully_and_goes_on(deployment, settings, hiso):
    folder = deployment.folder / "w0"
    before = deployment.ready(0)
    done = hiso("worker", "stop", folder)
    assert done.code == 0, done.err
    assert deployment.processes["worker0"].wait(30) == 0
    assert not (folder / "worker.sock").exists()
    assert "no worker answers" in hiso("worker", "status", folder).err
    deployment.worker(0, "--share")
    after = deployment.ready(0)
    assert (after["run"], after["position"]) == (before["run"], before["position"])
    assert os.environ.get("HF_HUB_OFFLINE")
    assert Path(folder / "worker.log").read_text().count("is ready") >= 2


def test_a_worker_that_lies_changes_nothing(deployment):
    evil = deployment.evil()
    deployment.kill("supernode2")
    deployment.supernode(2, worker=evil)
    deployment.serve("lies", "--rounds", len(LIES), "--sample", 3)
    summary = deployment.summary("lies")
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
    statuses = [deployment.status(index) for index in range(3)]
    assert [s["position"] for s in statuses] == [len(LIES)] * 3
    assert summary["digest"] is not None  # a majority, and replicas are checked in every round
    lines = (evil / "sizes").read_text().splitlines()
    ups, downs = zip(*(map(int, line.split()) for line in lines), strict=True)
    assert messages_of(deployment, "lies", 2) == (sum(ups), sum(downs))


def test_a_reply_that_comes_twice_counts_once(deployment):
    """In the middle of a round client 2 shows up at another SuperNode, so it is asked again."""
    out = "twice"
    front = deployment.evil("twice")
    deployment.kill("supernode2")
    deployment.serve(out, "--rounds", 1, "--sample", 3, "--round-seconds", 150)
    log, ledger = (deployment.folder / out / name for name in ("server.log", "ledger.sqlite"))
    here = re.compile("client ([01]) is here")
    deployment.wait(
        "clients 0 and 1", lambda: log.is_file() and len(set(here.findall(log.read_text()))) == 2
    )

    def refusals() -> list[tuple[int | None, int | None, str]]:
        with Ledger.open(ledger) as opened:
            return opened.refusals()

    deployment.processes["worker1"].send_signal(signal.SIGSTOP)  # so the round stays open
    try:
        deployment.supernode(2, worker=front)
        deployment.wait("plan", (front / "holding").exists)
        deployment.supernode(3, worker=front)
        deployment.wait("refusal", refusals)
    finally:
        deployment.processes["worker1"].send_signal(signal.SIGCONT)
    deployment.summary(out)
    for name in ("supernode2", "supernode3", front.name):
        deployment.kill(name)
    deployment.supernode(2)
    assert refusals() == [(2, 0, "client 2 has answered already")]
    with Ledger.open(ledger) as opened:
        (row,) = opened.rounds()
    assert (row.clients, row.set_aside) == ([0, 1, 2], {})


def test_rounds_go_on_without_a_worker_that_is_frozen(deployment):
    """Those that are there suffice; when it wakes, it catches up and takes part."""
    out = "frozen"
    few = ("--min-replies", 2, "--round-seconds", 20)
    deployment.serve(out, "--rounds", 6, "--sample", 3, *few)
    deployment.wait("first round", lambda: deployment.position(out) >= 1, 180)
    deployment.processes["worker2"].send_signal(signal.SIGSTOP)
    try:
        enough = deployment.position(out) + 2
        deployment.wait("rounds of two", lambda: deployment.position(out) >= enough, 180)
    finally:
        deployment.processes["worker2"].send_signal(signal.SIGCONT)
    summary = deployment.summary(out)
    with Ledger.open(deployment.folder / out / "ledger.sqlite") as ledger:
        rows = ledger.rounds()
    alone = [row.round for row in rows if row.clients == [0, 1]]
    assert alone
    assert not any(row.set_aside for row in rows)
    assert "has not answered in time" in (deployment.folder / out / "server.log").read_text()
    assert [deployment.status(index)["position"] for index in range(3)] == [6, 6, 6]
    assert summary["machine"]["clients_at_the_end"] == 3
    assert any(2 in row.clients for row in rows[max(alone) + 1 :])
