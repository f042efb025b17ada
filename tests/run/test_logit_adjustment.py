"""Logit adjustment: clients measure with the shares of their own labels in the softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiso import SubspaceNewton, ZoSgd, label_bias, simulate
from hiso.core.identity import Identity
from hiso.core.measure.outcome import Outcome, log_shares
from hiso.core.replica.replica import Replica
from hiso.errors import RunConflict, SettingsError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.workload.base import adjustments, make_replica
from hiso.run.workload.load import load_workload

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = torch.tensor([0, 0, 0, 2, 1, 0, 0, 0])


class Shard:
    examples = 8

    def batch(self, round: int, step: int) -> torch.Tensor:
        return torch.linspace(-1, 1, 8)[:, None] + step


def test_shares():
    found = log_shares([0, 0, 2, 0], 3)
    assert np.exp(found) == pytest.approx([4 / 7, 1 / 7, 2 / 7])
    assert log_shares([], 2) == pytest.approx(np.log([0.5, 0.5]))


def answer(tmp_path, method, adjust, by_hand):
    """A reply with what a client adds itself, or with what its loss function has added."""
    torch.manual_seed(0)
    replica = Replica(torch.nn.Linear(1, 3), Identity(method=method, seed=0, batch_size=8))

    @torch.no_grad()
    def losses(batches):
        told = [Outcome.of_scores(replica.module(x), LABELS) for x in batches]
        return [outcome.shifted(by_hand) for outcome in told]

    rules = RoundSettings(clients=1, sample=1, steps=2, directions=2, mu=1e-2)
    with Ledger.create(tmp_path / f"{len(list(tmp_path.iterdir()))}", replica.identity, {}) as log:
        (plan,) = Server(log, rules).ask()
        return Client(0, Shard(), replica, losses, adjust=adjust).answer(plan)


@pytest.mark.parametrize(
    "method",
    [ZoSgd(lr=0.1), SubspaceNewton(), label_bias(SubspaceNewton(), 3)],
    ids=["zo_sgd", "subspace_newton", "label_bias"],
)
def test_it_is_as_if_scores_had_the_shares(tmp_path, method):
    shares = log_shares(LABELS.tolist(), 3)
    ours = answer(tmp_path, method, shares, None)
    theirs = answer(tmp_path, method, None, shares)
    plain = answer(tmp_path, method, None, None)
    assert ours.scalars == pytest.approx(theirs.scalars, rel=1e-3, abs=1e-5)
    assert ours.facts == pytest.approx(theirs.facts, rel=1e-3)
    assert ours.loss == pytest.approx(theirs.loss)
    assert ours.loss < plain.loss
    assert ours.scalars != pytest.approx(plain.scalars, rel=1e-2)


@pytest.fixture
def base(small_run) -> dict:
    return {**small_run, "logit_adjustment": True, "partition": "dirichlet", "alpha": 0.3}


def test_a_simulation_is_clients_that_answer(tmp_path, base):
    base = base | {"rounds": 3, "joint": False}
    simulate(out=tmp_path / "run", **base)
    settings = parse_settings(base)
    method = settings.make_method()
    workload = load_workload(settings, method, Silent())
    adjust = adjustments(settings, workload)
    assert len({tuple(shares) for shares in adjust.values()}) > 1
    with Ledger.create(tmp_path / "own.sqlite", workload.identity, {}) as ledger:
        server = Server(ledger, settings.make_rounds(method))
        replica = make_replica(workload.identity, workload, "full", Silent())
        objective = workload.objective(replica.rows, joint=False)
        clients = [
            Client(i, s, replica, objective, adjust=adjust[i])
            for i, s in enumerate(workload.shards)
        ]
        for _ in range(3):
            for plan in server.ask():
                server.tell(clients[plan.client].answer(plan))
            server.close()
        with Ledger.read(tmp_path / "run" / "ledger.sqlite") as run:
            assert run.chain_at(3) == ledger.chain_at(3)


def test_it_is_part_of_the_run(tmp_path, base):
    simulate(out=tmp_path / "run", **base | {"rounds": 1})
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert ledger.facts["logit_adjustment"] is True
    with pytest.raises(RunConflict):
        simulate(out=tmp_path / "run", change={"logit_adjustment": False, "rounds": 2})
    plain = {key: value for key, value in base.items() if key != "logit_adjustment"}
    simulate(out=tmp_path / "plain", **plain | {"rounds": 1})
    with Ledger.read(tmp_path / "plain" / "ledger.sqlite") as ledger:
        assert "logit_adjustment" not in ledger.facts


def test_images(tmp_path):
    digits = {"task": "digits", "model": "mlp", "rounds": 4, "eval_every": 0}
    told = simulate(out=tmp_path / "run", logit_adjustment=True, label_bias=True, **digits)
    assert told["loss_after"] != told["loss_before"]


@pytest.mark.parametrize("more", [{"backward_clients": 1}, {"task": "text"}])
def test_what_it_does_not_go_with_is_refused(tmp_path, base, more):
    (tmp_path / "text.csv").write_text("text\n" + "".join(f"film {i}\n" for i in range(30)))
    data = {"data": str(tmp_path / "text.csv"), "partition": "iid"} if "task" in more else {}
    with pytest.raises(SettingsError):
        simulate(out=tmp_path / "run", **base | more | data)
    assert not (tmp_path / "run").exists()
