"""What may go wrong in a deployment: processes killed, frozen, lying, heard twice."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator

import pytest

from hiso.ring.accept.quarantine import FAULTS
from hiso.ring.ledger.ledger import Ledger

from .evil import LIES
from .federation import Deployment

pytestmark = [pytest.mark.flower, pytest.mark.timeout(600)]


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


@pytest.fixture
def without_worker_2(deployment) -> Iterator[Deployment]:
    """Worker 2 is stopped for the test, and whatever took its place ends after it."""
    deployment.ready(2)
    deployment.kill("worker2", signal.SIGTERM)
    yield deployment
    for name in [name for name in deployment.processes if name.startswith("front")]:
        deployment.kill(name)
    deployment.worker(2, "--share")


def test_a_worker_that_lies_changes_nothing(without_worker_2):
    deployment = without_worker_2
    evil = deployment.front(0, "lie")
    deployment.serve("lies", "--rounds", len(LIES), "--sample", 3)
    summary = deployment.summary("lies")
    with Ledger.open(deployment.folder / "lies" / "ledger.sqlite") as ledger:
        rows, refusals, faults = ledger.rounds(), ledger.refusals(), ledger.faults()
    assert [row.clients for row in rows] == [[0, 1]] * len(LIES)
    set_aside = {row.round: row.set_aside for row in rows if row.set_aside}
    assert set_aside.keys() == {1}
    assert "has digest" in set_aside[1][2]
    reasons = [reason for _, _, reason in refusals]
    expected = ["nan", "is not the open one", "malformed", "the answer is of client 0"]
    assert len(reasons) == len(expected), reasons
    for reason, part in zip(reasons, expected, strict=True):
        assert part in reason
    assert [fault.client for fault in faults] == [2] * FAULTS
    assert [fault.kind for fault in faults] == ["invalid", "digest", *["invalid"] * 3]
    log = (deployment.folder / "lies" / "server.log").read_text()
    assert "client 2 is not asked before round 25" in log
    assert [deployment.status(index)["position"] for index in range(2)] == [len(LIES)] * 2
    assert summary["digest"] is not None  # a majority, and replicas are checked in every round
    lines = (evil / "sizes").read_text().splitlines()
    ups, downs = zip(*(map(int, line.split()) for line in lines), strict=True)
    assert deployment.messages("lies", 2) == (sum(ups), sum(downs))


def test_a_reply_that_comes_twice_counts_once(without_worker_2):
    """In the middle of a round client 2 shows up at another node, so it is asked again, and only
    the answer of that node counts.
    """
    deployment, out = without_worker_2, "twice"
    deployment.serve(out, "--rounds", 1, "--sample", 3, "--round-seconds", 150)
    log, ledger = (deployment.folder / out / name for name in ("server.log", "ledger.sqlite"))
    here = re.compile("client ([01]) is connected")
    deployment.wait(
        "clients 0 and 1", lambda: log.is_file() and len(set(here.findall(log.read_text()))) == 2
    )

    def refusals() -> list[tuple[int | None, int | None, str]]:
        with Ledger.open(ledger) as opened:
            return opened.refusals()

    deployment.processes["worker1"].send_signal(signal.SIGSTOP)  # so the round stays open
    try:
        fronts = []
        for index in range(2):  # the second one comes while the first one has the plan
            fronts.append(deployment.front(index, "hold"))
            deployment.wait("plan", (fronts[-1] / "holding").exists)
        for front in fronts:
            (front / "go").touch()
        deployment.wait("refusal", refusals)
    finally:
        deployment.processes["worker1"].send_signal(signal.SIGCONT)
    deployment.summary(out)
    assert refusals() == [(None, 0, "a late reply of client 2 from another node")]
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
    assert "client 2 is unreachable" in (deployment.folder / out / "server.log").read_text()
    assert [deployment.status(index)["position"] for index in range(3)] == [6, 6, 6]
    assert summary["machine"]["clients_at_the_end"] == 3
    assert any(2 in row.clients for row in rows[max(alone) + 1 :])
