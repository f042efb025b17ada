"""The simulation against a plain federation of one replica per client, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hiso.core.keys import raw_bits
from hiso.core.method.base import Method, Values
from hiso.core.method.ops import Value
from hiso.core.method.registry import HiSo, HiZoo, Momentum, ZoSgd
from hiso.core.record import Record
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import NonFiniteLoss, ProtocolError, SettingsError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Closed, Server

from ..identities import identity_of

METHODS = [ZoSgd(lr=0.02), HiSo(lr=0.02, nu=0.2), Momentum(lr=0.01), HiZoo(lr=0.02, nu=0.01)]
RULES = RoundSettings(clients=5, sample=3, steps=1, directions=2, mu=1e-2)
SEED = 7

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """A small regression that no language model is needed for."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.hidden = nn.Parameter(torch.randn(6, 4, generator=generator) * 0.5)
        self.out = nn.Parameter(torch.randn(6, generator=generator) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.hidden.T) @ self.out


@dataclass(frozen=True, kw_only=True)
class Shrunk(Method):
    """Directions are divided by a hyper-parameter, which a plan may change."""

    name: ClassVar[str] = "shrunk"
    round_state: ClassVar[dict[str, float]] = {"h": 1.0}
    shrink: float = 1.0

    def denom(self, state: Values, hyper: Values) -> Value:
        return hyper["shrink"] * state["h"]


@dataclass(frozen=True)
class Shard:
    client: int
    examples: int = 16

    def batch(self, round: int, step: int) -> tuple[int, Tensor, Tensor]:
        bits = raw_bits(SEED, "test", (self.client, round, step), 32)
        x = torch.tensor([(int(b) % 200 - 100) / 100 for b in bits]).reshape(8, 4)
        return self.client, x, x.sum(1) + self.client / 10


SHARDS = [Shard(client) for client in range(300)]


class Losses:
    """Each batch by itself, so that rounding does not depend on who measures with whom."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.calls: list[list[int]] = []

    @torch.inference_mode()
    def __call__(self, batches: Sequence[Any]) -> list[float]:
        self.calls.append([client for client, _, _ in batches])
        return [float(((self.net(x) - y) ** 2).mean()) for _, x, y in batches]


def loss_of(net: Any, batch: Any) -> Tensor:
    _, x, y = batch
    return ((net(x) - y) ** 2).mean()


class Counted(Replica):
    writes = 0

    def write(self, *args: Any, **kwargs: Any) -> None:
        self.writes += 1
        super().write(*args, **kwargs)


def new_ledger(path: Path, method: Method) -> Ledger:
    return Ledger.create(path, identity_of(method, seed=SEED), {})


def make(ledger: Ledger, backend: Any = "numba") -> Counted:
    return Counted(Net(), ledger.identity, backend=backend)


def simulate(
    path: Path, method: Method, rules: RoundSettings, backend: Any = "numba"
) -> Simulation:
    ledger = new_ledger(path, method)
    replica = make(ledger, backend)
    server = Server(ledger, rules)
    shards = SHARDS[: rules.clients]
    assert isinstance(replica.module, Net)
    return Simulation(server, replica, shards, Losses(replica.module))


def log_of(ledger: Ledger) -> list[bytes]:
    return [record.to_bytes() for record in ledger.records()]


def plain_federation(
    path: Path,
    method: Method,
    rules: RoundSettings,
    rounds: int,
    backward: Collection[int] = (),
) -> tuple[list[bytes], tuple[int, int], int]:
    """A replica for every client, on the reference backend; each probes alone.

    Gives the log, the bytes, and the digest at the end.
    """
    with new_ledger(path, method) as ledger:
        replicas = [make(ledger, "reference") for _ in range(rules.clients)]
        clients = [
            Client(
                i,
                Shard(i),
                replica,
                Losses(replica.module),
                backward=partial(loss_of, replica.module) if i in backward else None,
            )
            for i, replica in enumerate(replicas)
        ]
        server = Server(ledger, rules)
        for _ in range(rounds):
            for plan in server.ask():
                assert server.tell(clients[plan.client].answer(plan)).accepted
            assert isinstance(server.close(), Closed)
        for replica in replicas:
            replica.replay(ledger.records(replica.position))
        (digest,) = {replica.digest() for replica in replicas}
        return log_of(ledger), ledger.traffic(), digest


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize(("steps", "directions"), [(1, 1), (1, 5), (3, 1), (3, 5)])
@pytest.mark.parametrize("per_client", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_it_is_a_plain_federation(tmp_path, method, per_client, steps, directions, scheme):
    rules = replace(RULES, steps=steps, directions=directions, scheme=scheme, per_client=per_client)
    simulation = simulate(tmp_path / "simulation", method, rules)
    for _ in range(3):
        assert isinstance(simulation.round(), Closed)
    ledger = simulation.server.ledger
    mine = log_of(ledger), ledger.traffic(), simulation.replica.digest()
    assert mine == plain_federation(tmp_path / "plain", method, rules, 3)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("per_client", [False, True], ids=["shared", "own"])
@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: m.name)
def test_replicas_agree_when_some_clients_answer_by_backward_passes(
    tmp_path, method, per_client, steps
):
    """Replicas of their own, on another backend, and a late joiner: one digest."""
    rules = replace(RULES, steps=steps, directions=4, per_client=per_client)
    found = []
    for able in ((), (0, 2), range(5)):
        path = tmp_path / str(len(able))
        log, traffic, digest = plain_federation(path, method, rules, 4, able)
        with Ledger.read(path) as ledger:
            late = make(ledger, "numba")
            late.replay(ledger.records())
        assert late.digest() == digest
        found.append((log, traffic, digest))
    assert len({digest for _, _, digest in found}) == 3  # differences have the bias of mu
    assert len({traffic for _, traffic, _ in found}) == 1
    coefficients = [
        np.concatenate([Record.from_bytes(record).coefficient for record in log])
        for log, _, _ in found
    ]
    for other in coefficients[:2]:
        assert np.allclose(other, coefficients[2], atol=0.1 * np.abs(other).max())


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("method", METHODS[:3], ids=lambda m: m.name)
def test_a_mixed_simulation_is_a_plain_federation(tmp_path, method, steps):
    rules, able = replace(RULES, steps=steps, directions=3), (1, 2)
    with new_ledger(tmp_path / "simulation", method) as ledger:
        replica = make(ledger, "reference")
        backward = dict.fromkeys(able, partial(loss_of, replica.module))
        losses, shards = Losses(replica.module), SHARDS[: rules.clients]
        simulation = Simulation(Server(ledger, rules), replica, shards, losses, backward=backward)
        for _ in range(3):
            assert isinstance(simulation.round(), Closed)
        mine = log_of(ledger), ledger.traffic(), replica.digest()
    assert mine == plain_federation(tmp_path / "plain", method, rules, 3, able)
    assert not {client for call in losses.calls for client in call} & set(able)


def test_a_method_that_differences_alone_can_answer_is_refused(tmp_path):
    with new_ledger(tmp_path / "ledger", HiZoo()) as ledger:
        replica = make(ledger)
        backward = {0: partial(loss_of, replica.module)}
        with pytest.raises(SettingsError, match="backward pass"):
            Simulation(
                Server(ledger, RULES), replica, SHARDS[:5], Losses(replica.module),
                backward=backward,
            )  # fmt: skip


def test_without_learning_hiso_is_zo_sgd(tmp_path):
    logs = []
    for method in (ZoSgd(lr=0.02), HiSo(lr=0.02, nu=0)):
        simulation = simulate(tmp_path / method.name, method, replace(RULES, steps=2))
        for _ in range(6):
            simulation.round()
        logs.append(log_of(simulation.server.ledger))
    assert logs[0] == logs[1]


def test_it_learns(tmp_path):
    simulation = simulate(tmp_path / "ledger", HiSo(lr=0.05), replace(RULES, directions=5))
    for _ in range(80):
        simulation.round()
    losses = simulation.server.ledger.losses()
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


@pytest.mark.parametrize(
    ("scheme", "points"), [("forward", 1 + 5), ("central", 2 * 5)], ids=["forward", "central"]
)
def test_clients_share_the_perturbed_weights(tmp_path, scheme, points):
    """However many are sampled, each point is written once, and measured for all of them."""
    for sample in (1, 3, 200):
        rules = replace(RULES, clients=300, sample=sample, directions=5, scheme=scheme)
        simulation = simulate(tmp_path / str(sample), ZoSgd(lr=0.01), rules)
        replica, losses = simulation.replica, simulation._losses
        assert isinstance(replica, Counted)
        assert isinstance(losses, Losses)
        before = replica.writes
        closed = simulation.round()
        assert isinstance(closed, Closed)
        assert replica.writes - before == points + 1  # and once for the module to be used
        assert losses.calls == [closed.clients] * points or sample == 200
        assert len(losses.calls) == points


def test_with_directions_of_their_own_they_share_the_weights_alone(tmp_path):
    simulation = simulate(tmp_path / "ledger", ZoSgd(), replace(RULES, per_client=True))
    replica = simulation.replica
    assert isinstance(replica, Counted)
    before = replica.writes
    simulation.round()
    assert replica.writes - before == 1 + 3 * 2 + 1


class Bad(Losses):
    """NaN for one client, from its n-th loss on, while it is broken."""

    def __init__(self, net: Net, client: int, after: int) -> None:
        super().__init__(net)
        self.client, self.left, self.broken = client, after, True

    def __call__(self, batches: Sequence[Any]) -> list[float]:
        values = super().__call__(batches)
        for number, (client, _, _) in enumerate(batches):
            if client == self.client and self.broken:
                self.left -= 1
                if self.left < 0:
                    values[number] = math.nan
        return values


@pytest.mark.parametrize(
    ("steps", "after", "where"),
    [
        (1, 0, "local step 0, at w itself"),
        (1, 2, r"local step 0, at direction 1 \(\+1mu\)"),
        (3, 7, r"local step 2, at direction 0 \(\+1mu\)"),
    ],
)
def test_a_loss_that_is_not_finite_changes_nothing(tmp_path, steps, after, where):
    rules = replace(RULES, steps=steps)
    healthy = simulate(tmp_path / "healthy", HiSo(lr=0.02), rules)
    broken = simulate(tmp_path / "broken", HiSo(lr=0.02), rules)
    for simulation in (healthy, broken):
        simulation.round()
        simulation.round()
    last = broken.server.ask()[-1].client
    net = broken.replica.module
    assert isinstance(net, Net)
    broken._losses = losses = Bad(net, last, after)
    ledger = broken.server.ledger
    before = log_of(ledger), broken.replica.position, broken.replica.digest(), ledger.traffic()
    for _ in range(2):
        losses.left = after
        with pytest.raises(NonFiniteLoss, match=f"client {last} in round 2, {where}"):
            broken.round()
        after_it = log_of(ledger), broken.replica.position, broken.replica.digest()
        assert (*after_it, ledger.traffic()) == before
    losses.broken = False
    for simulation in (healthy, broken):
        for _ in range(3):
            assert isinstance(simulation.round(), Closed)
    assert log_of(ledger) == log_of(healthy.server.ledger)
    assert ledger.refusals() == []


def test_after_a_failure_other_settings_can_take_over(tmp_path):
    simulation = simulate(tmp_path / "ledger", ZoSgd(lr=0.02), RULES)
    simulation.round()
    net = simulation.replica.module
    assert isinstance(net, Net)
    bad = Bad(net, simulation.server.ask()[0].client, 1)
    broken = Simulation(simulation.server, simulation.replica, SHARDS, bad)
    with pytest.raises(NonFiniteLoss):
        broken.round()
    ledger = simulation.server.ledger
    server = Server(ledger, replace(RULES, mu=1e-3, hyper={"lr": 0.01}))
    again = Simulation(server, simulation.replica, SHARDS, Losses(net))
    closed = again.round()
    assert isinstance(closed, Closed)
    assert closed.record.changes.keys() == {"lr"}


def test_a_late_joiner_is_the_replica_bit_for_bit(tmp_path):
    simulation = simulate(tmp_path / "ledger", HiSo(lr=0.02), replace(RULES, steps=2))
    ledger = simulation.server.ledger
    for r in range(9):
        if r == 3:
            simulation.server.settings = replace(RULES, directions=4, hyper={"lr": 0.03})
        if r == 6:
            simulation.server.settings = replace(RULES, per_client=True, hyper={"nu": 0.3})
        simulation.round()
    replica = simulation.replica
    for backend, chunk in (("reference", 1), ("numba", 4), ("numba", 9)):
        late = make(ledger, backend)
        for start in range(0, 9, chunk):
            late.replay(ledger.records(start, start + chunk))
        assert (late.digest(), late.chain) == (replica.digest(), replica.chain)
        assert torch.equal(late.weights, replica.weights)
        assert torch.equal(late.state["h"], replica.state["h"])
        assert late.hyper == replica.hyper
        assert late.hyper["lr"] == pytest.approx(0.03)


def test_it_goes_on_from_a_ledger(tmp_path):
    """A simulation in a new process, with a new replica, writes the rest of the same log."""
    whole = simulate(tmp_path / "whole", HiSo(lr=0.02), replace(RULES, steps=2))
    parted = simulate(tmp_path / "parted", HiSo(lr=0.02), replace(RULES, steps=2))
    for _ in range(6):
        whole.round()
    for _ in range(3):
        parted.round()
    parted.server.ledger.close()
    with Ledger.open(tmp_path / "parted") as ledger:
        replica = make(ledger)
        server = Server(ledger, replace(RULES, steps=2))
        assert isinstance(replica.module, Net)
        again = Simulation(server, replica, SHARDS, Losses(replica.module))
        assert replica.position == 3
        for _ in range(3):
            again.round()
        assert log_of(ledger) == log_of(whole.server.ledger)


def test_a_replica_of_another_run_is_refused(tmp_path):
    simulation = simulate(tmp_path / "ledger", ZoSgd(), RULES)
    simulation.replica.chain = b"another"
    with pytest.raises(ProtocolError, match="it has folded other records"):
        simulation.round()
    assert simulation.server.ledger.position == 0


def test_times_are_kept(tmp_path):
    simulation = simulate(tmp_path / "ledger", ZoSgd(), RULES)
    simulation.round()
    (row,) = simulation.server.ledger.rounds()
    assert 0 < row.seconds["forward"] <= row.seconds["round"]


@pytest.mark.parametrize("per_client", [False, True])
def test_clients_measure_with_the_changes_of_the_plan(tmp_path, per_client):
    """In the first local step too, where clients share what is written."""
    method = Shrunk(lr=0.02)
    rules = replace(RULES, per_client=per_client, steps=2, hyper={"shrink": 4.0})
    simulation = simulate(tmp_path / "ours", method, rules)
    with simulation.server.ledger as ledger:
        for _ in range(3):
            simulation.round()
        assert ledger.records()[0].changes == {"shrink": 4.0}
        log, _, digest = plain_federation(tmp_path / "plain", method, rules, 3)
        assert log_of(ledger) == log
        assert simulation.replica.digest() == digest


def test_after_a_loss_that_is_not_finite_the_round_is_asked_anew(tmp_path):
    """The same simulation goes on, with the settings that it is given then."""
    simulation = simulate(tmp_path / "run", ZoSgd(lr=0.02), RULES)
    good, simulation._losses = simulation._losses, lambda batches: [math.nan] * len(batches)
    with pytest.raises(NonFiniteLoss):
        simulation.round()
    simulation._losses = good
    simulation.server.settings = replace(RULES, mu=1e-3, directions=4)
    closed = simulation.round()
    assert isinstance(closed, Closed)
    assert closed.record.terms == 4
