from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from hiso.errors import NonFiniteLoss, ProtocolError, SettingsError
from hiso.ring.client import Client
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.ring.wire import hash_question, reply_to_bytes

from .standin import Curved, StandIn, client_of, clients_of, new_ledger, one_round

RULES = RoundSettings(clients=3, sample=3, steps=1, directions=2, mu=1e-3)


@pytest.fixture
def server(tmp_path):
    """At position 4."""
    ledger = new_ledger(tmp_path / "ledger.db")
    server = Server(ledger, RULES)
    clients = clients_of(ledger, 3)
    for _ in range(4):
        one_round(server, clients)
    return server


def fresh(server: Server, index: int = 0) -> Client:
    return clients_of(server.ledger, 3)[index]


def test_a_fresh_client_catches_up_and_answers(server):
    server.ask()
    client, plan = fresh(server, 1), server.rejoin(1, 0)
    reply = client.answer(plan)
    assert (client.replica.position, client.replica.chain) == (4, plan.chain)
    assert (reply.round, reply.client, reply.examples) == (4, 1, 20)
    assert reply.asked == hash_question(plan)
    assert reply.digest == client.replica.digest()
    assert reply.scalars.shape == (1, 2)
    assert reply.scalars.any()
    assert reply.curvature is None
    assert server.tell(reply).accepted


def test_a_method_with_curvature_is_probed_for_it(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db", Curved())
    plan = Server(ledger, RULES).ask()[0]
    reply = clients_of(ledger, 3)[plan.client].answer(plan)
    assert reply.curvature is not None
    assert reply.curvature.shape == (1, 2)
    assert reply.count == 4


def test_a_repeated_plan_is_measured_again_and_gets_the_same_reply(server):
    server.ask()
    client, plan = fresh(server), server.rejoin(0, 0)
    reply = client.answer(plan)
    again = client.answer(replace(plan, records=plan.records[2:]))  # as the server knows more now
    assert reply_to_bytes(again) == reply_to_bytes(reply)


@pytest.mark.parametrize("change", [{"mu": 2e-3}, {"scheme": "central"}, {"changes": {"lr": 1.0}}])
def test_another_question_is_measured_anew(server, change):
    server.ask()
    client, plan = fresh(server), server.rejoin(0, 0)
    reply = client.answer(plan)
    assert client.begin(replace(plan, **change)).ask() is not None
    with pytest.raises(RuntimeError, match="no finished probe"):
        client.finish()
    again = client.answer(replace(plan, **change))
    assert again.asked != reply.asked


def test_an_interrupted_probe_can_be_begun_again(server):
    server.ask()
    plan = server.rejoin(0, 0)
    expected = fresh(server).answer(plan)
    client = fresh(server)
    with pytest.raises(RuntimeError, match="no finished probe"):
        client.finish()
    probe = client.begin(plan)
    probe.tell(1.0)
    with pytest.raises(NonFiniteLoss):
        probe.tell(math.nan)
    with pytest.raises(RuntimeError, match="no finished probe"):
        client.finish()
    reply = client.answer(plan)
    assert reply.scalars.tobytes() == expected.scalars.tobytes()
    assert (reply.digest, reply.loss) == (expected.digest, expected.loss)


def test_plans_that_do_not_fit_are_refused_and_leave_the_replica_alone(server):
    server.ask()
    plan = server.rejoin(0, 0)
    client = fresh(server)
    before = client.replica.digest()
    bad = {
        "belongs to run ffff": replace(plan, run="f" * 64),
        "addressed to client 1": replace(plan, client=1),
        r"is at position 0, but the plan's records begin at 2: .*resend from 0": replace(
            plan, records=plan.records[2:]
        ),
        "it has folded other records": replace(plan, chain=bytes(32)),
    }
    for message, wrong in bad.items():
        with pytest.raises(ProtocolError, match=f"client 0 cannot probe round 4: .*{message}"):
            client.begin(wrong)
        assert (client.replica.position, client.replica.digest()) == (0, before)
    with pytest.raises(ProtocolError, match=r"run ffff.*; it is addressed to client 1"):
        client.begin(replace(plan, run="f" * 64, client=1))
    client.answer(plan)
    with pytest.raises(ProtocolError, match=r"past that round, at position 4.*rolled back"):
        client.begin(replace(plan, round=2, records=plan.records[:2]))


def test_a_client_of_an_abandoned_log_is_told_to_restore(server):
    """Rolled back to 2, the log took another course; the client still stands on the old one."""
    client = fresh(server)
    server.ask()
    client.answer(server.rejoin(0, 0))
    server.ledger.rollback(2)
    again = Server(server.ledger, replace(RULES, hyper={"lr": 0.01}))
    others = clients_of(server.ledger, 3)
    for _ in range(3):
        for plan in again.ask():
            again.tell(others[plan.client].answer(again.rejoin(plan.client, 0)))
        again.close()
    again.ask()
    with pytest.raises(ProtocolError, match=r"it has folded other records\. Restore"):
        client.begin(again.rejoin(0, 2))
    client = client_of(0, StandIn(server.ledger.identity))
    assert again.tell(client.answer(again.rejoin(0, 0))).accepted


def test_plans_are_checked_when_they_are_made(server):
    plan = server.ask()[0]
    with pytest.raises(ProtocolError, match=r"steps = 0 .*; directions = 0 .*; mu = 0 .*; scheme"):
        replace(plan, steps=0, directions=0, mu=0, scheme="up")
    with pytest.raises(ProtocolError, match=r"follow each other up to round 3, not \[1, 2\]"):
        replace(plan, records=tuple(server.ledger.records(1, 3)))
    with pytest.raises(ProtocolError, match="stream = 2 must be 0"):
        replace(plan, client=0, stream=2)


def test_a_client_with_one_example_answers(server):
    server.ask()
    plan = server.rejoin(0, 0)
    client = client_of(0, StandIn(server.ledger.identity), examples=1)
    assert client.answer(plan).examples == 1


def test_a_client_without_examples_is_refused(server):
    with pytest.raises(SettingsError, match="client 2 has 0 examples"):
        client_of(2, StandIn(server.ledger.identity), examples=0)


def test_local_steps_walk_with_the_changes_of_the_plan(server):
    """τ = 2: the second step's scalars depend on the learning rate that the plan brings."""
    server.settings = replace(RULES, steps=2, hyper={"lr": 0.01})
    server.ask()
    plan = server.rejoin(0, 0)
    changed, kept = (fresh(server).answer(p).scalars for p in (plan, replace(plan, changes={})))
    assert np.array_equal(changed[0], kept[0])
    assert not np.array_equal(changed[1], kept[1])
