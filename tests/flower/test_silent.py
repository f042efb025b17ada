"""A client that says nothing costs a round a few reply times, not the longest wait."""

from __future__ import annotations

import signal

import pytest

from hiso.ring.ledger.ledger import Ledger

from ..modes import readable_by_others
from .federation import Deployment

pytestmark = [pytest.mark.flower, pytest.mark.timeout(400)]


def test_a_frozen_client_does_not_hold_up_a_run(deployment: Deployment):
    """The longest wait is longer than this test may last."""
    out = "frozen"
    deployment.serve(out, "--rounds", 4, "--sample", 3, "--min-replies", 2, "--round-seconds", 3000)
    deployment.wait("first round", lambda: deployment.position(out) >= 1, 180)
    worker = deployment.processes["worker2"]
    worker.send_signal(signal.SIGSTOP)
    try:
        deployment.summary(out, 300)
    finally:
        worker.send_signal(signal.SIGCONT)
    with Ledger.read(deployment.folder / out / "ledger.sqlite") as ledger:
        clients, faults = [row.clients for row in ledger.rounds()], ledger.faults()
    assert readable_by_others(deployment.folder / out) == []
    assert clients[0] == [0, 1, 2]
    assert clients[-1] == [0, 1]
    assert {(fault.client, fault.kind) for fault in faults} == {(2, "silent")}
