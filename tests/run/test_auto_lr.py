"""`lr = auto`: the rate follows the curvature that replies tell, and the log says what it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiso import HiSo, Momentum, SubspaceNewton, ZoSgd, auto_lr, evaluate_run, simulate
from hiso.core.identity import Identity
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import ProtocolError, RunConflict, SettingsError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.ring.wire import plan_from_bytes, plan_to_bytes, reply_from_bytes, reply_to_bytes
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.workload.base import make_replica
from hiso.run.workload.load import load_workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(small_run) -> dict:
    return {**small_run, "lr": "auto", "method": "zo_sgd"}


def records_of(out):
    with Ledger.read(out / "ledger.sqlite") as ledger:
        return ledger.records()


@pytest.mark.parametrize("factor", [{"method": "zo_sgd"}, {"method": "momentum", "beta": 0.5}])
def test_the_rate_follows_the_curvature_that_replies_tell(tmp_path, base, factor):
    simulate(out=tmp_path / "run", **base | factor)
    directions, examples = base["directions"], base["sample"] * base["batch_size"]
    share = 0.5 * directions / (1 + 32 / examples) * (1 - factor.get("beta", 0.0))
    lr, c = 0.0, 0.0
    for record in records_of(tmp_path / "run"):
        t = record.facts["t"]
        expected = share / (c or t)  # the first round has the rate of its own curvature
        c = 0.9 * c + 0.1 * t if c else t
        lr = record.changes.get("lr", lr)
        assert lr == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"method": "hiso"},
        {"method": "hizoo"},
        {"method": "momentum"},
        {"scheme": "central", "local_steps": 2},
        {"per_client": True, "weighting": "examples"},
    ],
    ids=lambda how: "-".join(map(str, how.values())) or "plain",
)
def test_a_run_that_stops_goes_on_as_if_it_had_not(tmp_path, base, how):
    whole = simulate(out=tmp_path / "whole", **base | how)
    assert whole["settings"]["lr"] == "auto"
    simulate(out=tmp_path / "parts", **base | how | {"rounds": 2})
    parts = simulate(out=tmp_path / "parts", **base | how, change={"rounds": 6})
    assert parts["digest"] == whole["digest"]
    assert parts["chain"] == whole["chain"]
    late = evaluate_run(tmp_path / "whole")
    assert (late["digest"], late["loss"]) == (whole["digest"], whole["loss_after"])


def test_clients_that_answer_over_the_wire_make_the_same_log(tmp_path, base):
    base = base | {"rounds": 3, "joint": False, "local_steps": 2}
    simulate(out=tmp_path / "run", **base)
    settings = parse_settings(base)
    method = settings.make_method()
    workload = load_workload(settings, method, Silent())
    identity = Identity.parse(workload.identity.text)
    with Ledger.create(tmp_path / "own.sqlite", identity, {}) as ledger:
        server = Server(ledger, settings.make_rounds(method))
        replica = make_replica(identity, workload, "full", Silent())
        objective = workload.objective(replica.rows, joint=False)
        clients = [Client(i, s, replica, objective) for i, s in enumerate(workload.shards)]
        for _ in range(3):
            for plan in server.ask():
                reply = clients[plan.client].answer(plan_from_bytes(plan_to_bytes(plan)))
                assert server.tell(reply_from_bytes(reply_to_bytes(reply)))
            server.close()
        mine = [record.to_bytes() for record in ledger.records()]
    assert mine == [record.to_bytes() for record in records_of(tmp_path / "run")]


def test_it_moves_along_the_scalars_of_the_plain_method(tmp_path, base):
    """Up to how differences are taken: of scores, or of their mean losses."""
    simulate(out=tmp_path / "auto", **base | {"rounds": 1, "scheme": "central"})
    simulate(out=tmp_path / "plain", **base | {"rounds": 1, "scheme": "central", "lr": 0.01})
    auto, plain = (records_of(tmp_path / name)[0] for name in ("auto", "plain"))
    size = float(np.abs(plain.coefficient).max())
    assert auto.coefficient == pytest.approx(plain.coefficient, abs=1e-2 * size)


def test_free_text(tmp_path, base):
    texts = [f"the film is {word} and {word}" for word in ("good", "bad", "fine", "dull")] * 5
    (tmp_path / "text.csv").write_text("text\n" + "\n".join(texts) + "\n")
    told = simulate(
        out=tmp_path / "run", **base | {"task": "text", "data": str(tmp_path / "text.csv")}
    )
    assert told["loss_after"] < told["loss_before"]


@pytest.mark.parametrize("change", [{"lr": 0.1}, {"lr": "auto"}])
def test_a_run_cannot_change_who_sets_the_rate(tmp_path, base, change):
    before = "auto" if change["lr"] != "auto" else 0.1
    simulate(out=tmp_path / "run", **base | {"lr": before, "rounds": 2})
    with pytest.raises(RunConflict):
        simulate(out=tmp_path / "run", change=change | {"rounds": 3})


@pytest.mark.parametrize("more", [{"normalise": 0.1}, {"method": "subspace_newton"}])
def test_what_it_does_not_go_with_is_refused(tmp_path, base, more):
    with pytest.raises(SettingsError):
        simulate(out=tmp_path / "run", **base | more)


def test_of_methods_as_objects():
    assert auto_lr(ZoSgd()) == auto_lr(ZoSgd(lr=3.0))
    assert auto_lr(Momentum(beta=0.5)).hyper == {"lr": 0.0, "beta": 0.5}
    identity = Identity(method=auto_lr(HiSo(nu=0.1, feed="all")), seed=0)
    assert Identity.parse(identity.text).method == identity.method
    assert Identity(method=HiSo(), seed=0).root != Identity(method=auto_lr(HiSo()), seed=0).root
    with pytest.raises(SettingsError):
        auto_lr(SubspaceNewton())
    plain = (
        '{"method":{"auto":true,"hyper":{"lr":0.5,"ridge":0},"name":"subspace_newton"},"seed":0}'
    )
    with pytest.raises(ProtocolError):
        Identity.parse(plain)


class Shard:
    examples = 8

    def batch(self, round: int, step: int) -> torch.Tensor:
        return torch.linspace(-1, 1, 8)[:, None] + round + step


def test_a_loss_function_must_return_scores(tmp_path):
    torch.manual_seed(0)
    identity = Identity(method=auto_lr(ZoSgd()), seed=0, batch_size=8)
    replica = Replica(torch.nn.Linear(1, 2), identity)
    kinds = ["scores"]

    @torch.no_grad()
    def losses(batches):
        pairs = [(replica.module(x), (x[:, 0] > 0).long()) for x in batches]
        each = [torch.nn.functional.cross_entropy(*pair, reduction="none") for pair in pairs]
        return {"scores": pairs, "losses": each, "mean": [e.mean() for e in each]}[kinds[-1]]

    rules = RoundSettings(clients=3, sample=2, steps=1, directions=2, mu=1e-2)
    with Ledger.create(tmp_path / "own.sqlite", identity, {}) as ledger:
        simulation = Simulation(Server(ledger, rules), replica, [Shard()] * 3, losses)
        for _ in range(20):
            simulation.round()
        for kind in ("losses", "mean"):
            kinds.append(kind)
            with pytest.raises(SettingsError):
                simulation.round()
        losses_told = [row.loss for row in ledger.rounds()]
    assert losses_told[-1] < losses_told[0] / 2
