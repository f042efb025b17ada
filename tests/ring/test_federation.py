"""Whole federations in memory, with drop-outs, late joiners, changes, faults and restarts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiso.core.keys import choose
from hiso.errors import Diverged, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Aborted, Closed, Server

from .standin import (
    Curved,
    Plain,
    StandIn,
    client_of,
    clients_of,
    log_bytes,
    new_ledger,
    one_round,
)

BASE = RoundSettings(clients=5, sample=3, steps=1, directions=2, mu=1e-3)


def assert_all_replicas_agree(ledger: Ledger, clients, method) -> None:
    """A replica that joins now, and everyone who was there, are one and the same."""
    records = ledger.records()
    witness = StandIn(ledger.identity)
    for r, record in enumerate(records):
        assert ledger.digest_at(r) == witness.digest()
        assert ledger.chain_at(r) == witness.chain
        witness.replay([record])
    for client in clients:
        client.replica.replay(records[client.replica.position :])
        assert client.replica.digest() == witness.digest()
        assert client.replica.hyper == witness.hyper
    ledger.verify()


@pytest.mark.parametrize("per_client", [False, True])
@pytest.mark.parametrize("method", [Plain(lr=0.05), Curved(lr=0.05)], ids=lambda m: m.name)
def test_thirty_rounds_with_everything(tmp_path, method, per_client):
    ledger = new_ledger(tmp_path / "ledger.db", method)
    clients = clients_of(ledger, 5)
    server = Server(ledger, replace(BASE, per_client=per_client))
    stands = dict.fromkeys(range(5), 0)
    scalars = []  # of each record, counted by hand
    losses = []
    for r in range(30):
        if r == 10:
            server.settings = replace(server.settings, directions=4, steps=2, scheme="central")
        if r == 15:
            server.settings = replace(server.settings, hyper={"lr": 0.03}, weighting="examples")
        if r == 20:
            server.settings = replace(server.settings, per_client=not per_client, mu=1e-2)
        asked = choose(7, "sample", r, 0, size=5, count=3)
        silent = {asked[0]} if r % 4 == 1 else set()
        if r < 10:
            silent |= {4}  # joins late, after four faults
        plans = server.ask()
        assert [plan.client for plan in plans] == asked
        assert [plan.changes for plan in plans] == [
            {"lr": float(np.float32(0.03))} if r == 15 else {}
        ] * 3
        for plan in plans:
            assert [record.round for record in plan.records] == list(range(stands[plan.client], r))
        down = sum(sum(scalars[stands[i] :]) + (r == 15) for i in asked)
        result = one_round(server, clients, silent)
        assert isinstance(result, Closed)
        assert result.clients == [i for i in asked if i not in silent]
        numbers = (8 if r >= 10 else 2) * (1 + method.measures_curvature)
        own = server.settings.per_client
        scalars.append(numbers * (len(result.clients) if own else 1) + (r == 15))
        assert result.record.scalars == scalars[-1]
        assert result.bytes_up == 4 * numbers * len(result.clients)
        assert result.bytes_down == 4 * down
        stands |= dict.fromkeys(result.clients, r)
        losses.append(result.loss)
    assert losses[-1] < losses[0] / 2
    assert_all_replicas_agree(ledger, clients, method)
    rows = ledger.rounds()
    assert [row.round for row in rows] == list(range(30))
    assert [row.loss for row in rows] == losses == ledger.losses()
    assert rows[3].seconds == {"probe": 0.5}
    assert ledger.traffic() == (sum(r.bytes_up for r in rows), sum(r.bytes_down for r in rows))


def test_the_bytes_of_a_run_where_all_take_part_are_the_papers(tmp_path):
    """P scalars up and P down for each client and round, but for the last record: nobody asks."""
    ledger = new_ledger(tmp_path / "ledger.db")
    server = Server(ledger, replace(BASE, clients=3, directions=5))
    clients = clients_of(ledger, 3)
    for _ in range(10):
        one_round(server, clients)
    assert ledger.traffic() == (3 * 10 * 5 * 4, 3 * 9 * 5 * 4)


def test_one_shared_replica_gives_the_same_log_as_one_for_each(tmp_path):
    logs = []
    for name in ("own", "shared"):
        ledger = new_ledger(tmp_path / name)
        clients = clients_of(ledger, 5)
        if name == "shared":
            shared = StandIn(ledger.identity)
            clients = [client_of(i, shared) for i in range(5)]
        server = Server(ledger, BASE)
        for _ in range(12):
            one_round(server, clients)
        logs.append((log_bytes(ledger), ledger.traffic()))
    assert logs[0] == logs[1]


def test_a_replica_that_parts_is_set_aside_and_told_when(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    server = Server(ledger, replace(BASE, sample=5))
    clients = clients_of(ledger, 5)
    for _ in range(4):
        one_round(server, clients)
    clients[2].replica.w[0] += 1  # a bit flips at position 3
    result = one_round(server, clients)
    assert isinstance(result, Closed)
    assert result.clients == [0, 1, 3, 4]
    assert list(result.set_aside) == [2]
    assert "client 2 has digest" in result.set_aside[2]
    assert "4 of 5 repliers" in result.set_aside[2]
    assert (
        "last agreed in round 3, so it differs since one of records 3 to 3" in result.set_aside[2]
    )
    assert "Start it again" in result.set_aside[2]
    assert ledger.rounds()[4].set_aside == result.set_aside
    assert result.bytes_up == 4 * 2 * 5  # what was sent was sent
    for _ in range(2):
        result = one_round(server, clients)
    assert (
        "last agreed in round 3, so it differs since one of records 3 to 5" in result.set_aside[2]
    )

    clients[2] = client_of(2, StandIn(ledger.identity))  # started again
    plans = {plan.client: plan for plan in server.ask()}
    plans[2] = server.rejoin(2, 0)
    for i, plan in plans.items():
        assert server.tell(clients[i].answer(plan)).accepted
    result = server.close()
    assert isinstance(result, Closed)
    assert not result.set_aside
    assert result.bytes_down == 4 * sum(plan.scalars for plan in plans.values())
    assert_all_replicas_agree(ledger, clients, Plain(lr=0.05))


def test_without_a_majority_the_round_is_tried_again_with_others(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    clients = clients_of(ledger, 6)
    server = Server(ledger, replace(BASE, clients=6, sample=2))
    clients[server.ask()[0].client].replica.w += 1
    first = server.ask()
    result = one_round(server, clients)
    assert isinstance(result, Aborted)
    assert "none has a majority" in result.reason
    assert "base weights" in result.reason
    assert ledger.position == 0
    assert result.bytes_up == 2 * 2 * 4
    second = Server(ledger, server.settings).ask()
    assert second == server.ask()
    assert ledger.attempt(0) == 1
    assert [p.client for p in second] == choose(7, "sample", 0, 1, size=6, count=2)
    assert [p.client for p in second] != [p.client for p in first]


def test_too_few_replies_abort_and_cost_their_bytes(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    clients = clients_of(ledger, 5)
    server = Server(ledger, replace(BASE, min_replies=2))
    asked = [plan.client for plan in server.ask()]
    result = one_round(server, clients, silent=asked[1:])
    assert isinstance(result, Aborted)
    assert "1 good replies arrived, but min_replies = 2" in result.reason
    assert f"clients {asked[1:]}" in result.reason
    nobody = one_round(server, clients, silent=range(5))
    assert isinstance(nobody, Aborted)
    assert (nobody.round, nobody.attempt) == (0, 1)
    assert isinstance(one_round(server, clients), Closed)
    assert ledger.traffic() == (4 * 2 * (1 + 3), 0)
    server.settings = replace(BASE, sample=5, min_replies=5)
    assert isinstance(one_round(server, clients, silent=[0]), Aborted)
    assert [len(plan.records) for plan in server.ask()] == [1, 0, 0, 0, 0]
    assert ledger.traffic()[1] == 4 * 2 * 5


def test_divergence_records_nothing_and_says_what_to_do(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    clients = clients_of(ledger, 5)
    guarded = replace(BASE, divergence_factor=2.0)
    server = Server(ledger, guarded)
    for _ in range(6):
        one_round(server, clients)
    server.settings = replace(guarded, hyper={"lr": 4.0})

    def until_it_diverges() -> None:
        for _ in range(20):
            one_round(server, clients)

    with pytest.raises(Diverged) as caught:
        until_it_diverges()
    last = ledger.position
    good = caught.value.position
    assert good is not None
    assert 0 <= good <= last
    assert ledger.losses()[good] <= 2 * ledger.losses()[0]
    assert caught.value.lr == 2.0

    ledger.rollback(good)
    clients = clients_of(ledger, 5)
    server = Server(ledger, replace(guarded, hyper={"lr": 0.02}))
    for plan in server.ask():
        server.tell(clients[plan.client].answer(server.rejoin(plan.client, 0)))
    assert isinstance(server.close(), Closed)
    assert ledger.position == good + 1


@pytest.mark.parametrize("weighting", ["plain", "examples"])
def test_the_loss_is_weighted_as_the_scalars_are(tmp_path, weighting):
    ledger = new_ledger(tmp_path / "ledger.db")
    server = Server(ledger, replace(BASE, sample=5, weighting=weighting))
    clients = clients_of(ledger, 5)
    result = one_round(server, clients)
    assert isinstance(result, Closed)
    weights = [client.shard.examples if weighting == "examples" else 1 for client in clients]
    losses = [client.finish().loss for client in clients]
    assert result.loss == pytest.approx(np.average(losses, weights=weights), rel=1e-14)


def test_hyper_parameters_in_force_survive_a_restart(tmp_path):
    ledger = new_ledger(tmp_path / "ledger.db")
    clients = clients_of(ledger, 5)
    server = Server(ledger, replace(BASE, hyper={"lr": 0.01}))
    first = one_round(server, clients)
    assert isinstance(first, Closed)
    assert first.record.changes == {"lr": float(np.float32(0.01))}
    again = Server(ledger, BASE)
    assert again.hyper == {"lr": float(np.float32(0.01))}
    assert all(plan.changes == {} for plan in again.ask())
    with pytest.raises(SettingsError, match="no hyper-parameter eta: it has lr"):
        Server(ledger, replace(BASE, hyper={"eta": 1.0})).ask()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(kills=st.sets(st.integers(0, 50), min_size=1, max_size=6))
def test_a_server_killed_between_any_two_calls_writes_the_same_log(tmp_path, kills):
    number = len(list(tmp_path.iterdir()))
    assert killed_run(tmp_path / f"{number}-killed", kills) == killed_run(
        tmp_path / f"{number}-whole", set()
    )


def killed_run(path: Path, kills: set[int]) -> tuple[list[bytes], list[tuple]]:
    """Six rounds, three of whose attempts are aborted; the server dies after the calls `kills`."""
    ledger = new_ledger(path)
    clients = clients_of(ledger, 5)
    rules = replace(BASE, min_replies=2, per_client=True)
    server = Server(ledger, rules)
    calls = itertools.count()

    def killed() -> bool:
        nonlocal server, ledger
        if next(calls) not in kills:
            return False
        ledger.close()
        ledger = Ledger.open(path, method=Plain)
        server = Server(ledger, rules)
        return True

    while ledger.position < 6:
        plans = server.ask()
        if killed():
            continue
        for n, plan in enumerate(plans):
            if n > 0 and (plan.round, ledger.attempt(plan.round)) in {(2, 0), (4, 0), (4, 1)}:
                continue  # too few reply
            assert server.tell(clients[plan.client].answer(plan)).accepted
            if killed():
                break
        else:
            server.close()
            killed()
    with ledger:
        ledger.verify()
        rows = [(r.loss, r.clients, r.bytes_up, r.bytes_down) for r in ledger.rounds()]
        return log_bytes(ledger), rows
