"""One node with several clients: the same model as with a node for each."""

from __future__ import annotations

import json
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
from hiso.run.inspect import inspect_run
from hiso.run.launch import evaluate_run
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.watch import Watched, watch_run
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
    settings = settings | {"clients": 5, "sample": 4, "min_replies": 4, "rounds": 8}
    site = Deployment(tmp_path / "f")
    try:
        write_toml(site.folder / "settings.toml", settings)
        for clients in ("0-2,4", 3):
            simulated_site(site.folder / f"w{clients}")
            if clients != 3:
                with (site.folder / f"w{clients}" / "site.toml").open("a") as file:
                    file.write('evaluate = "train"\n')
            site.worker(clients, "--share")
        site.superlink()
        site.serve()
        site.wait("round 2", lambda: site.position("run") >= 2)
        seen = site.wait("replies", lambda: with_replies(watch_run(site.folder / "run")))
        assert seen.doing == "rounds"
        assert [client.here for client in seen.clients] == [True] * 5
        monkeypatch.chdir(site.folder)
        back_up([Path("run")], Path("copy"), Silent())
        site.kill("worker0-2,4")
        site.worker("0-2,4", "--share")
        summary = site.summary("run")
        seen = watch_run(site.folder / "run")
        assert (seen.finished, seen.doing, seen.rounds) == (True, None, 8)
        assert site.status("0-2,4")["clients"] == [0, 1, 2, 4]
        site.start("eval", "hiso", "eval", "run", "--split", "sites", "--json")
        site.wait("counts", lambda: site.processes["eval"].poll() == 0)
        counted = json.loads(site.output("eval"))
        assert "client 3 has not counted" in (site.folder / "run" / "server.log").read_text()
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
    with Ledger.read(tmp_path / "simulated" / "ledger.sqlite") as ledger:
        simulation = parse_settings(ledger.settings)
    sizes = {
        shard.client: shard.examples
        for shard in load_workload(simulation, simulation.make_method(), Silent()).shards
    }
    shares = {
        client: evaluate_run(tmp_path / "simulated", split=f"client {client}")["accuracy"]
        for client in (0, 1, 2, 4)
    }
    assert (counted["sites"], counted["position"]) == (1, 8)
    assert counted["examples"] == sum(sizes[client] for client in shares)
    right = round(sum(sizes[client] * share for client, share in shares.items()))
    assert round(counted["accuracy"] * counted["examples"]) == right
    assert summary["bytes_up"] == expected["bytes_up"]
    assert summary["bytes_down"] <= expected["bytes_down"]
    together = [sum(way or 0 for way in sizes) for sizes in messages]
    assert together[0] > together[3] > 0  # the gateway's messages stand at its first client asked


@pytest.mark.flower
@pytest.mark.timeout(300)
def test_a_resumed_run_waits_for_the_clients_of_before(tmp_path, settings):
    site = Deployment(tmp_path / "f")
    settings = settings | {"clients": 2, "sample": 2, "min_replies": 1, "rounds": 3}
    try:
        write_toml(site.folder / "settings.toml", settings)
        site.superlink()
        for client in (0, 1):
            site.worker(client, "--share")
        site.serve()
        site.summary("run")
        site.kill("worker1")
        site.start("serve", "hiso", "serve", "--out", "run", "--change", "rounds=6")
        site.wait("server", lambda: watch_run(site.folder / "run").doing == "waiting for clients")
        site.worker(1, "--share")
        site.summary("run")
        with Ledger.read(site.folder / "run" / "ledger.sqlite") as ledger:
            assert [sorted(row.clients) for row in ledger.rounds(3)] == [[0, 1]] * 3
    finally:
        site.close()


def with_replies(seen: Watched) -> Watched | None:
    told = any(client.reply and client.reply.in_time for client in seen.clients)
    return seen if told else None


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

    def __init__(self, folder, clients, own=None):
        self.clients = clients
        self.worker = Worker(SETTINGS, folder / "w", own=own, alive=lambda: None)
        self.ledger = Ledger.create(folder / "ledger.sqlite", self.worker._identity, {})
        self.server = Server(self.ledger, SETTINGS.make_rounds(SETTINGS.make_method()))

    def ask(self, **facts) -> Envelope:
        plans = {plan.client: plan for plan in self.server.ask()}
        same = plan_to_bytes(next(iter(plans.values())).for_client(0))
        facts = {"identity": self.ledger.identity.text, **facts}
        return self.worker.handle(Envelope("round", facts, same), self.clients)

    def at_the_end(self, kind: str) -> Envelope:
        """The answer to what all sites are sent at the end of the log."""
        plan = plan_to_bytes(self.server.rest(self.clients[0], 0).for_client(0))
        facts = {"identity": self.ledger.identity.text}
        return self.worker.handle(Envelope(kind, facts, plan), self.clients)


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


def counts(folder, evaluate) -> Envelope:
    """What a node says that is to count right answers at the start of its run."""
    (folder / "w").mkdir(mode=0o700)
    (folder / "w" / "site.toml").write_text(f'evaluate = "{evaluate}"\n')
    return Node(folder, [0, 1]).at_the_end("count")


def test_a_site_that_has_only_its_own_data_goes_to_the_end_of_the_log(tmp_path, one_thread):
    """Though what is sent to all sites names no client, and this one is not client 0."""
    (tmp_path / "w").mkdir()
    answer = Node(tmp_path, [3], own=(3,)).at_the_end("fold")
    assert answer.kind == "folded", answer.facts
    assert answer.facts["position"] == 0


@pytest.mark.parametrize("evaluate", ["train", "test"])
def test_right_answers_are_counted_where_the_site_allows_it(tmp_path, one_thread, evaluate):
    answer = counts(tmp_path, evaluate)
    assert answer.kind == "counts", answer.facts
    workload = load_workload(SETTINGS, SETTINGS.make_method(), Silent())
    examples = workload.test
    if evaluate == "train":
        examples = [e for shard in workload.shards[:2] for e in shard.encoded]
    objective = workload.objective(lambda weight, _: weight, joint=False)
    share = workload.evaluate(objective, examples, None, lambda _: None)["accuracy"]
    assert answer.facts["examples"] == len(examples)
    assert answer.facts["right"] == round(share * len(examples))
    assert answer.facts.keys() == {"position", "digest", "examples", "right"}


def test_no_right_answers_are_counted_elsewhere(tmp_path, one_thread, monkeypatch):
    assert counts(tmp_path, "no").facts["error"] == "ProtocolError"
    monkeypatch.setattr(worker_module, "FEWEST_COUNTED", 10**6)
    (tmp_path / "few").mkdir()
    assert counts(tmp_path / "few", "test").facts["error"] == "ProtocolError"


def test_the_server_notes_when_data_change(tmp_path, one_thread):
    """A site finds it out at its next start, and its mark tells nothing else."""
    (tmp_path / "w").mkdir()
    first = Node(tmp_path, [0, 1])
    said = first.worker.hello([0, 1], None).facts["data"]
    assert said == first.worker.hello([0, 1], None).facts["data"]
    assert said not in str(load_workload(SETTINGS, SETTINGS.make_method(), Silent()).identity.data)
    first.worker.close()
    other = parse_settings(SETTINGS.model_dump() | {"seed": 1})
    again = Worker(other, tmp_path / "w", own=None, alive=lambda: None)
    assert again.hello([0, 1], None).facts["data"] == said  # the same images
    ledger = first.ledger
    assert ledger.mark_data([0, 1], said) == []
    assert ledger.mark_data([0, 1], said) == []
    assert ledger.mark_data([1, 2], "ff") == [1]
    assert ledger.data_changes() == [(1, 0)]
    ledger.close()
    assert inspect_run(tmp_path, 5)["data_changes"] == [{"client": 1, "position": 0}]
    assert [client.trouble for client in watch_run(tmp_path).clients if client.client == 1]


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
