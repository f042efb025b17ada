"""What one client tries against everybody else's run, and that it comes to nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hiso.errors import Diverged
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Reply
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Aborted, Closed, Server

from .standin import Plain, StandIn, client_of, log_bytes, new_ledger

TWENTY = RoundSettings(clients=20, sample=20, steps=1, directions=3, mu=1e-3, divergence_factor=3.0)
EVIL = 7
Attack = Callable[[Reply], Reply]


def alike(ledger: Ledger, count: int) -> list[Client]:
    """Clients with replicas of their own and ten examples each."""
    return [client_of(i, StandIn(ledger.identity), 10) for i in range(count)]


def attacked_round(
    server: Server, clients: Sequence[Client], attack: Attack, evil: int = EVIL
) -> Closed | Aborted:
    for plan in server.ask():
        reply = clients[plan.client].answer(plan)
        verdict = server.tell(attack(reply) if plan.client == evil else reply)
        assert verdict.accepted, verdict.reason
    return server.close()


def honest(reply: Reply) -> Reply:
    return reply


def huge_loss(reply: Reply) -> Reply:
    return replace(reply, loss=1e30)


def huge_loss_later(reply: Reply) -> Reply:
    return huge_loss(reply) if reply.round >= 10 else reply


def run(path: Path, attack: Attack, rounds: int, *, restart: int | None = None) -> list[bytes]:
    ledger = new_ledger(path)
    server, clients = Server(ledger, TWENTY), alike(ledger, 20)
    for r in range(rounds):
        if r == restart:
            ledger.close()
            ledger = Ledger.open(path, method=Plain)
            server = Server(ledger, TWENTY)
        assert isinstance(attacked_round(server, clients, attack), Closed)
    with ledger:
        return log_bytes(ledger)


def test_a_loss_of_1e30_from_one_of_twenty_does_not_stop_a_run(tmp_path):
    undisturbed = run(tmp_path / "honest", honest, 25)
    assert run(tmp_path / "attacked", huge_loss_later, 25) == undisturbed
    assert run(tmp_path / "resumed", huge_loss_later, 25, restart=12) == undisturbed


@pytest.mark.parametrize("restart", [False, True])
def test_a_loss_of_1e30_in_the_first_rounds_does_not_hide_a_divergence(tmp_path, restart):
    stops = []
    for name, attack in (("honest", honest), ("attacked", huge_loss)):
        ledger = new_ledger(tmp_path / name)
        server, clients = Server(ledger, TWENTY), alike(ledger, 20)

        def until_it_diverges(server=server, clients=clients, attack=attack, ledger=ledger):
            for _ in range(40):
                attacked_round(server, clients, attack)
                server = Server(ledger, TWENTY) if restart else server
                server.settings = replace(TWENTY, hyper={"lr": 4.0})

        with pytest.raises(Diverged) as caught:
            until_it_diverges()
        stops.append((ledger.position, caught.value.position, caught.value.lr))
    assert stops[0] == stops[1]
    assert stops[0][0] < 20


@pytest.mark.parametrize("sample", [1, 2])
def test_honest_runs_with_one_or_two_clients_are_guarded_as_ever(tmp_path, sample):
    """The median of one or two losses is their mean, which the guard looked at before."""
    settings = replace(TWENTY, clients=sample, sample=sample)
    ledger = new_ledger(tmp_path / "ledger")
    server, clients = Server(ledger, settings), alike(ledger, sample)
    for _ in range(12):
        attacked_round(server, clients, honest)
    assert ledger.median_losses() == pytest.approx(ledger.losses(), rel=1e-15)
    server.settings = replace(settings, hyper={"lr": 4.0})

    def until_it_diverges() -> None:
        for _ in range(30):
            attacked_round(server, clients, honest)

    with pytest.raises(Diverged):
        until_it_diverges()
