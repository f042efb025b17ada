"""One node with several clients: the same model as with a node for each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import ProtocolError
from hiso.flower import worker as worker_module
from hiso.flower.envelope import Envelope, join, split
from hiso.flower.worker import Worker
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.api import simulate
from hiso.run.backup import back_up
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.watch import watch_run
from hiso.run.workload.load import load_workload

from .conftest import simulated_site
from .federation import Deployment, write_toml

SETTINGS = parse_settings(
    {
        "task": "digits", "model": "mlp", "method": "zo_sgd", "lr": 0.01, "clients": 5, "sample": 4,
        "batch_size": 8, "directions": 2,
    }
)  # fmt: skip


@pytest.mark.flower
@pytest.mark.timeout(300)
def test_the_same_model_as_the_simulation_also_after_a_crash(tmp_path, settings, monkeypatch):
    """And after the server's run was lost and restored from a copy made while it went on."""
    settings = settings | {"clients": 5, "sample": 4, "rounds": 8}
    site = Deployment(tmp_path / "f")
    try:
        write_toml(site.folder / "settings.toml", settings)
        for clients in ("0-2,4", 3):
            simulated_site(site.folder / f"w{clients}")
            site.worker(clients, "--share")
        site.superlink()
        site.serve()
        site.wait("round 2", lambda: site.position("run") >= 2)
        seen = watch_run(site.folder / "run")
        assert seen.doing == "rounds"
        assert [client.here for client in seen.clients] == [True] * 5
        assert any(client.reply and client.reply.in_time for client in seen.clients)
        monkeypatch.chdir(site.folder)
        back_up([Path("run")], Path("copy"), Silent())
        site.kill("worker0-2,4")
        site.worker("0-2,4", "--share")
        summary = site.summary("run")
        seen = watch_run(site.folder / "run")
        assert (seen.finished, seen.doing, seen.rounds) == (True, None, 8)
        assert site.status("0-2,4")["clients"] == [0, 1, 2, 4]
        messages = [site.messages("run", client) for client in range(5)]
        shutil.rmtree("run")
        shutil.copytree("copy", ".", dirs_exist_ok=True)
        assert 2 <= site.position("run") < 8
        site.serve()
        assert site.summary("run")["digest"] == summary["digest"]
    finally:
        site.close()
    asked = settings | {"dev_examples": 4, "test_examples": 4, "clip": 3.0}
    expected = simulate(out=tmp_path / "simulated", **asked)
    assert summary["digest"] == expected["digest"]
    assert summary["bytes_up"] == expected["bytes_up"]
    assert summary["bytes_down"] <= expected["bytes_down"]
    together = [sum(way or 0 for way in sizes) for sizes in messages]
    assert together[0] > together[3] > 0  # the gateway's messages stand at its first client asked


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_parts_of_a_body_survive(parts):
    assert split(join(parts)) == parts


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_a_body_that_is_cut_short_is_refused(parts, data):
    body = join(parts)
    whole = {len(join(parts[:n])) for n in range(len(parts) + 1)}
    cut = data.draw(st.integers(0, len(body)).filter(lambda n: n not in whole))
    with pytest.raises(ProtocolError):
        split(body[:cut])


class Node:
    """A worker with some clients, and the server of its run."""

    def __init__(self, folder, clients):
        self.clients = clients
        self.worker = Worker(SETTINGS, folder / "w", own=None, alive=lambda: None)
        self.ledger = Ledger.create(folder / "ledger.sqlite", self.worker._identity, {})
        self.server = Server(self.ledger, SETTINGS.make_rounds(SETTINGS.make_method()))

    def ask(self, **facts) -> Envelope:
        plans = {plan.client: plan for plan in self.server.ask()}
        same = plan_to_bytes(next(iter(plans.values())).for_client(0))
        facts = {"identity": self.ledger.identity.text, **facts}
        return self.worker.handle(Envelope("round", facts, same), self.clients)


@pytest.fixture
def node(tmp_path, one_thread):
    (tmp_path / "w").mkdir()
    return Node(tmp_path, [0, 1, 2, 3, 4])


def clients_of(answer: Envelope) -> list[int]:
    assert answer.kind == "replies", answer.facts
    return [reply_from_bytes(reply).client for reply in split(answer.body)]


def test_a_node_answers_for_those_clients_that_it_is_asked_for(node):
    assert clients_of(node.ask(clients=[1, 3])) == [1, 3]
    assert clients_of(node.ask()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("clients", [[5], [0, 9], [], "0", [0.5], [[1]], None])
def test_a_node_does_not_answer_for_others(node, clients):
    assert node.ask(clients=clients).kind == "error"


def test_replies_that_do_not_fit_into_a_message_wait_for_the_next(node, monkeypatch):
    one = len(split(node.ask(clients=[0]).body)[0])
    monkeypatch.setattr(worker_module, "MAX_REPLIES", 2 * one)
    assert clients_of(node.ask(clients=[0, 1, 2, 3])) == [0, 1]


def test_what_one_client_is_refused_does_not_concern_the_others(tmp_path, one_thread):
    (tmp_path / "w").mkdir(mode=0o700)
    (tmp_path / "w" / "site.toml").write_text("max_scalars = 3\n")
    answer = Node(tmp_path, [0, 1]).ask()
    assert clients_of(answer) == [0]
    ((client, reason),) = answer.facts["refused"]
    assert client == 1
    assert "3 in all are allowed" in reason


def test_the_data_of_a_site_are_divided_among_its_own_clients():
    method = SETTINGS.make_method()
    whole = load_workload(SETTINGS, method, Silent())
    own = load_workload(SETTINGS, method, Silent(), own=(1, 4))
    assert [shard.client for shard in own.shards] == [1, 4]
    assert sum(s.examples for s in own.shards) == sum(s.examples for s in whole.shards)
