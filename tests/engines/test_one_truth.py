"""Ledger, replica, server and client belong to one identity, or are refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.method.registry import HiSo, ZoSgd
from hiso.core.record import Record
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import ProtocolError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Closed, Server

pytestmark = pytest.mark.usefixtures("one_thread")
RULES = RoundSettings(clients=3, sample=2, steps=1, directions=2, mu=1e-2)


class Shard:
    examples = 8

    def batch(self, round: int, step: int) -> torch.Tensor:
        return torch.linspace(-1, 1, 8)[:, None] + round + step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1, 2)


def federation(ledger: Ledger, replica: Replica, kind: str = "scores") -> Simulation:
    @torch.no_grad()
    def losses(batches: Any) -> list[Any]:
        pairs = [(replica.module(x), (x[:, 0] > 0).long()) for x in batches]
        if kind == "scores":
            return pairs
        each = [nn.functional.cross_entropy(*pair, reduction="none") for pair in pairs]
        return each if kind == "losses" else [float(e.double().mean()) for e in each]

    return Simulation(Server(ledger, RULES), replica, [Shard()] * 3, losses)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"method": ZoSgd(lr=0.01)},
        {"method": HiSo(lr=5.0)},
        {"noise": "gaussian"},
        {"dtype": "bfloat16"},
        {"loss": {"name": "mse", "version": 2}},
    ],
)
def test_a_replica_of_another_identity_is_refused_at_construction(tmp_path, other):
    """The ledger had seed 0 and lr 5, the replica seed 1 and lr 0.01, and five rounds ran."""
    identity = Identity(method=ZoSgd(lr=5.0), seed=0, loss={"name": "mse", "version": 1})
    with Ledger.create(tmp_path / "ledger", identity, {}) as ledger:
        stranger = Replica(network(), replace(identity, **other))
        with pytest.raises(ProtocolError) as caught:
            federation(ledger, stranger)
        (name,) = other
        assert name in str(caught.value)
        plan = Server(ledger, RULES).ask()[0]
        client = Client(plan.client, Shard(), stranger, lambda batches: [1.0] * len(batches))
        with pytest.raises(ProtocolError):
            client.answer(plan)
        assert ledger.position == 0


def test_a_replica_on_another_log_is_refused_at_construction(tmp_path):
    identity = Identity(method=ZoSgd(lr=0.1), seed=0)
    with Ledger.create(tmp_path / "one", identity, {}) as one:
        first = federation(one, Replica(network(), one.identity))
        first.round()
        with (
            Ledger.create(tmp_path / "other", identity, {}) as other,
            pytest.raises(ProtocolError),
        ):
            federation(other, first.replica)


def test_a_round_ends_with_the_replica_at_the_end_of_the_log(tmp_path):
    with Ledger.create(tmp_path / "l", Identity(method=HiSo(lr=0.1), seed=0), {}) as ledger:
        simulation = federation(ledger, Replica(network(), ledger.identity))
        for r in range(3):
            assert isinstance(simulation.round(), Closed)
            assert simulation.replica.position == ledger.position == r + 1
            assert simulation.replica.chain == ledger.chain_at(r + 1)
        late = Replica(network(), ledger.identity)
        late.replay(ledger.records())
        assert late.digest() == simulation.replica.digest()


def test_a_loss_function_may_return_scores_losses_or_a_mean(tmp_path):
    logs = []
    for kind in ("scores", "losses", "mean"):
        with Ledger.create(tmp_path / kind, Identity(method=ZoSgd(lr=0.1), seed=0), {}) as ledger:
            simulation = federation(ledger, Replica(network(), ledger.identity), kind)
            for _ in range(3):
                simulation.round()
            logs.append(np.concatenate([r.coefficient for r in ledger.records()]))
    for other in logs[1:]:
        assert other == pytest.approx(logs[0], rel=1e-5)


@dataclass(frozen=True, kw_only=True)
class Counting(Method):
    """ZO-SGD that remembers how large the log's coefficients were."""

    name: ClassVar[str] = "counting"
    derived: ClassVar[Mapping[str, float]] = {"largest": 0.0, "rounds": 0.0}

    def remember(self, derived: Mapping[str, float], record: Record) -> Mapping[str, float]:
        largest = max(derived["largest"], float(np.abs(record.coefficient).max()))
        return {"largest": largest, "rounds": derived["rounds"] + 1}


def test_what_derives_from_the_log_is_run_by_replay_and_restored(tmp_path):
    identity = Identity(method=Counting(lr=0.1), seed=0)
    with Ledger.create(tmp_path / "l", identity, {}) as ledger:
        simulation = federation(ledger, Replica(network(), identity))
        for _ in range(4):
            simulation.round()
        replica = simulation.replica
        expected = max(float(np.abs(r.coefficient).max()) for r in ledger.records())
        assert replica.derived == {"largest": expected, "rounds": 4.0}
        assert ledger.derived_at(identity.method, Counting.derived) == replica.derived
        late = Replica(network(), identity)
        assert late.derived == Counting.derived
        late.replay(ledger.records(0, 2))
        at_two = ledger.derived_at(identity.method, Counting.derived, 2)
        assert late.derived == at_two
        again = Replica(network(), identity)
        again.restore({"weights": late.weights}, 2, late.chain, late.hyper, at_two)
        again.replay(ledger.records(2))
        assert again.derived == replica.derived
        assert again.digest() == replica.digest()
