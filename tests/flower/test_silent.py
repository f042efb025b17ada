"""A client that says nothing costs a round a few reply times, not the longest wait."""

from __future__ import annotations

import signal

import pytest

from hiso.ring.ledger.ledger import Ledger

from ..modes import readable_by_others
from .federation import Deployment

pytestmark = [pytest.mark.flower, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("sample", "oversample", "blamed"), [(3, 0, {(2, "silent")}), (2, 0.5, set())]
)
def test_a_frozen_client_does_not_hold_up_a_run(
    deployment: Deployment, sample: int, oversample: float, blamed: set[tuple[int, str]]
):
    """The longest wait is longer than this test may last. Three clients are asked in each round."""
    out = f"frozen-{sample}"
    deployment.serve(
        out, "--rounds", 4, "--sample", sample, "--oversample", oversample, "--min-replies", 2,
        "--round-seconds", 3000,
    )  # fmt: skip
    deployment.wait("first round", lambda: deployment.position(out) >= 1, 180)
    worker = deployment.processes["worker2"]
    worker.send_signal(signal.SIGSTOP)
    try:
        deployment.summary(out, 300)
    finally:
        worker.send_signal(signal.SIGCONT)
    with Ledger.open(deployment.folder / out / "ledger.sqlite") as ledger:
        clients, faults = [row.clients for row in ledger.rounds()], ledger.faults()
    assert readable_by_others(deployment.folder / out) == []
    assert all({0, 1} & set(used) for used in clients)
    assert clients[-1] == [0, 1]
    assert {(fault.client, fault.kind) for fault in faults} == blamed
