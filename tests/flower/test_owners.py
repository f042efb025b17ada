"""A client number belongs to the first registered key that claims it."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
from dataclasses import replace

import pytest
from flwr.cli.supernode.register import try_load_public_key
from flwr.proto.node_pb2 import NodeInfo
from rich.console import Console

from hiso.cli.display import inspection
from hiso.flower.envelope import Envelope
from hiso.flower.exchange import Answer, Post
from hiso.flower.owners import Owners, owner_of
from hiso.flower.sites import Sites
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Owner
from hiso.run.inspect import inspect_run

from .test_sites import GOOD

A, B = Owner("SHA256:a", "site a"), Owner("SHA256:b", "site b")


class Nodes:
    """A grid of which only the nodes are looked at."""

    def __init__(self, *nodes: NodeInfo) -> None:
        self.nodes = nodes

    def get_nodes(self) -> tuple[NodeInfo, ...]:
        return self.nodes

    def push_messages(self, messages):
        return [None for _ in messages]


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "ledger.sqlite", GOOD, {"rounds": 3}) as made:
        yield made


def test_the_first_key_owns_a_number_over_restarts_until_it_is_released(ledger):
    owners = Owners()
    owners.keep_in(ledger)
    assert owners.claim([1], A)
    assert owners.claim([2], A)  # a gateway answers for several clients
    assert not owners.claim([1], B)
    assert not owners.claim([1], None)
    assert owners.claim([0], None)
    assert owners.claim([0], B)

    again = Owners()
    again.keep_in(ledger)
    assert again.claim([1], replace(A, site="renamed"))
    assert not again.claim([1], B)
    assert ledger.release(1) == A
    assert ledger.release(1) is None
    later = Owners()
    later.keep_in(ledger)
    assert later.claim([1], B)
    assert not later.claim([1], A)
    assert ledger.owners() == {0: B, 1: B, 2: A}


def test_a_number_claimed_before_there_is_a_ledger_is_kept_in_it(ledger):
    owners = Owners()
    assert owners.claim([1], A)
    assert not owners.claim([1], B)
    owners.keep_in(ledger)
    assert ledger.owners() == {1: A}
    assert not owners.claim([1], B)
    assert owners.claim([2], B)
    assert ledger.owners() == {1: A, 2: B}


def test_a_refused_claim_is_told_once_in_the_log_and_by_inspect(ledger, tmp_path, caplog):
    owners = Owners()
    owners.keep_in(ledger)
    owners.claim([1], A)
    for _ in range(5):
        assert not owners.claim([1], B)
    ((client, round, reason),) = ledger.refusals()
    assert (client, round) == (1, None)
    assert all(part in reason for part in (A.key, A.site, B.key, B.site, "--release 1"))
    assert caplog.messages == [reason]
    assert ledger.faults() == []  # who was robbed is not at fault
    ledger.close()
    told = inspect_run(tmp_path, 3)
    assert told["owners"] == [{"client": 1, "key": A.key, "site": A.site}]
    assert told["refusals"] == [{"client": 1, "round": None, "reason": reason}]
    console = Console(record=True, width=400)
    inspection(console, told | {"settings": {"method": "hiso"}})
    shown = console.export_text()
    assert A.key in shown
    assert reason in shown


def test_ledgers_of_before_get_the_table(ledger):
    path = ledger.path
    ledger.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE owners")
    db.close()
    with Ledger.open(path) as opened:
        opened.own({1: A})
        assert opened.owners() == {1: A}


def test_the_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path):
    path = tmp_path / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path], check=True
    )
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", f"{path}.pub"], check=True, capture_output=True, text=True
    ).stdout.split()[1]
    sent = try_load_public_key(path.with_suffix(".pub"))  # as `flwr supernode register` does
    assert owner_of(sent, "x\n\x1b[2J") == Owner(shown, "x \\x1b[2J")
    grid = Nodes(
        NodeInfo(node_id=5, public_key=sent, name="site5"), NodeInfo(node_id=6, public_key=b"any")
    )
    post = Post(grid)  # pyright: ignore[reportArgumentType]
    assert post.nodes() == {5: Owner(shown, "site5"), 6: None}


def test_a_node_with_another_key_does_not_take_the_place_of_a_client(caplog):
    sites = Sites(None, 3)  # pyright: ignore[reportArgumentType]
    sites._known = {7: A, 8: B, 9: None, 10: A}

    def hello(node: int, client: int) -> None:
        facts = {"clients": [client], "position": 0, "run": None, "chain": "", "weights": 5}
        facts |= {"identity": GOOD.text}
        sites.greet(Answer(node, Envelope("hello"), Envelope("hello", facts), 100))

    with caplog.at_level(logging.INFO):
        for node in (7, 8, 9, 8):
            hello(node, 1)
            assert sites.by_client[1].node == 7
        assert len(caplog.messages) == 3  # connected, and two that are refused once each
        hello(10, 1)  # the same site at another node
        assert sites.by_client[1].node == 10
        hello(8, 2)
        assert sites.by_client[2].node == 8
