"""A worker whose disk or memory fails for a moment goes on as if nothing had been."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hiso.core.kernels.numba_backend import NumbaKernels
from hiso.flower.envelope import Envelope, split
from hiso.flower.worker import Worker
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan, Reply
from hiso.ring.server import Closed, Server
from hiso.ring.site import Site
from hiso.ring.site_settings import SiteSettings
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = parse_settings(
    {
        "task": "digits", "model": "mlp", "method": "zo_sgd", "lr": 0.01, "clients": 2, "sample": 2,
        "batch_size": 8, "directions": 2,
    }
)  # fmt: skip


class Both:
    """A worker for both clients and the server's side of a run, in one process."""

    def __init__(self, folder: Path) -> None:
        (folder / "worker").mkdir(parents=True)
        site = Site(folder / "worker", SiteSettings(batches="seed"))
        self.worker = Worker(SETTINGS, folder / "worker", own=None, alive=lambda: None, site=site)
        self.ledger = Ledger.create(folder / "server.sqlite", self.worker._identity, {})
        rounds = SETTINGS.make_rounds(SETTINGS.make_method())
        self.server = Server(self.ledger, rounds)

    def ask(self, plan: Plan) -> Envelope:
        """The worker's answer to a plan that starts where its log ends, as its hello says."""
        stands = 0 if self.worker._ledger is None else self.worker._ledger.position
        plan = self.server.rejoin(plan.client, min(stands, plan.round))
        request = Envelope("round", {"identity": self.ledger.identity.text}, plan_to_bytes(plan))
        return self.worker.handle(request, [plan.client])

    def round(self) -> None:
        for plan in self.server.ask():
            answer = self.ask(plan)
            assert answer.kind == "replies", answer.facts
            assert self.server.tell(reply_from_bytes(*split(answer.body))).accepted
        assert isinstance(self.server.close(), Closed)

    def fails(self) -> None:
        """Both clients answer with an error, or would if the process around the worker did."""
        for plan in self.server.ask():
            with suppress(MemoryError):
                assert self.ask(plan).kind == "error"

    def digest(self) -> int:
        self.round()
        return self.ledger.digest_at(self.ledger.position - 1) or 0


@pytest.fixture
def site(tmp_path) -> Both:
    site = Both(tmp_path / "site")
    for _ in range(3):
        site.round()
    return site


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> int:
    site = Both(tmp_path_factory.mktemp("whole"))
    for _ in range(5):
        site.round()
    return site.digest()


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """No file may grow beyond what the largest log beside a ledger has."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(path.stat().st_size for path in folder.rglob("ledger.sqlite-wal"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_was_full_once_costs_one_answer(site, expected, tmp_path):
    with full_disk(tmp_path / "site" / "worker"):
        site.fails()
    assert site.worker.position == site.worker._log.position == 2
    for _ in range(2):
        site.round()
    assert site.digest() == expected


def test_a_fold_that_was_interrupted_costs_one_answer(site, expected, monkeypatch):
    """The log has the record already; the replica is made again from it."""

    def out_of_memory(*_: Any) -> int:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(NumbaKernels, "fold", out_of_memory)
        site.fails()
    assert site.worker._log.position == 3
    for _ in range(2):
        site.round()
    assert site.digest() == expected


def test_a_replica_that_others_have_changed_is_made_again(site, expected):
    site.worker._standing.weights.zero_()
    for _ in range(2):
        site.round()
    assert site.digest() == expected


def test_records_that_cannot_be_folded_are_not_logged(site):
    plan = site.server.ask()[0]
    (record,) = site.server.rejoin(plan.client, 2).records
    evil = site.ledger.records(2)[0]
    assert evil.to_bytes() == record.to_bytes()
    object.__setattr__(evil, "changes", {"nonsense": 1.0})
    bad = copy(site.server.rejoin(plan.client, 2))
    object.__setattr__(bad, "records", (evil,))
    object.__setattr__(bad, "chain", evil.chain(site.ledger.chain_at(2)))
    request = Envelope("round", {}, plan_to_bytes(bad))
    assert site.worker.handle(request, [plan.client]).kind == "error"
    assert site.worker._log.position == 2
    reply = reply_from_bytes(*split(site.ask(plan).body))
    assert isinstance(reply, Reply)
    assert np.isfinite(reply.scalars).all()
