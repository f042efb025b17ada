"""A worker alone, as a real process that is asked through its socket."""

from __future__ import annotations

import pytest

from hiso.core.identity import Identity
from hiso.flower.envelope import BUSY, MISSING, Envelope
from hiso.flower.local_socket import ask
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan
from hiso.ring.server import Closed, Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.api import simulate
from hiso.run.settings import parse_settings

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


def test_the_watchdog_ends_a_worker_that_hangs(site, settings, tmp_path):
    """It says where it stood, its process fails, and the next one goes on in the same round."""
    only = settings | {"clients": 1, "sample": 1, "rounds": 4}
    expected = simulate(out=tmp_path / "simulated", dev_examples=4, test_examples=4, **only)
    folder = site.folder / "w0"
    simulated_site(folder)
    site.start(
        "worker0", "python", "-m", "tests.flower.hanging", site.folder / "settings.toml", folder,
        WATCHDOG, folder=ROOT,
    )  # fmt: skip
    site.ready(0)
    identity = ask(folder, Envelope("hello", {"run": None}), 60).facts["identity"]
    parsed = parse_settings(only)
    method = parsed.make_method()
    rounds = parsed.make_rounds(method)

    def request(kind: str, plan: Plan) -> Envelope:
        return Envelope(kind, {"identity": identity}, plan_to_bytes(plan))

    path = site.folder / "ledger.sqlite"
    with Ledger.create(
        path, Identity.parse(identity), parsed.with_hyper(method).model_dump()
    ) as ledger:
        server = Server(ledger, rounds)

        def go_on(stop: int) -> None:
            while ledger.position < stop:
                (plan,) = server.ask()
                answer = ask(folder, request("round", plan), 60)
                assert server.tell(reply_from_bytes(answer.body)).accepted
                assert isinstance(server.close(), Closed)

        go_on(2)
        (folder / "hang").touch()
        (plan,) = server.ask()
        assert ask(folder, request("round", plan), 2).facts["error"] == BUSY
        assert site.status(0)["doing"] == "round"
        assert ask(folder, request("round", plan), 6 * WATCHDOG).facts["error"] == MISSING
        assert site.processes["worker0"].wait(60) == 1
        assert ask(folder, request("round", plan), 60).facts["error"] == MISSING
        log = (folder / "worker.log").read_text()
        assert f"Timeout (0:00:{WATCHDOG})!" in log
        where = log[log.index("Timeout") :]
        assert "in stand_still" in where
        assert "in _compute" in where

        (folder / "hang").unlink()
        site.worker(0, "--share")
        before = site.ready(0)
        assert (before["run"], before["position"]) == (ledger.run, 2)
        go_on(4)
        end = ask(folder, request("fold", server.rest(0, 3)), 60)
    assert end.facts == {"position": 4, "digest": expected["digest"]}
