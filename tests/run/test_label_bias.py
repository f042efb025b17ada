"""Biases of the labels: their columns and steps, a log that carries them, runs that tune them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hiso import (
    Federation,
    HiSo,
    HiZoo,
    SubspaceNewton,
    ZoSgd,
    auto_lr,
    evaluate_run,
    export_model,
    label_bias,
    open_run,
    simulate,
)
from hiso.core.identity import Identity
from hiso.core.measure.local import Local, contrasts
from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Probe
from hiso.core.replica.replica import Replica
from hiso.errors import RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.workload.load import load_workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(small_run) -> dict:
    own = {key: value for key, value in small_run.items() if key != "lr"}
    return {**own, "method": "subspace_newton", "label_bias": True}


def outcomes(classes: int, directions: int = 3, size: int = 6) -> list[Outcome]:
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=size)
    base = rng.standard_normal((size, classes))
    moved = [base, *(base + 1e-2 * rng.standard_normal(base.shape) for _ in range(directions))]
    return [Outcome.of_scores(scores.astype(np.float32), labels) for scores in moved]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_contrasts_are_orthonormal_and_sum_to_nothing(classes):
    q = contrasts(classes)
    assert q.T @ q == pytest.approx(np.eye(classes - 1))
    assert q.sum(0) == pytest.approx(np.zeros(classes - 1))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_shift_of_scores_is_that_of_automatic_differentiation(classes):
    """Losses, gradient and Gauss–Newton matrix along the contrasts, exact: no differences."""
    base, *ahead = outcomes(classes)
    b = np.linspace(-1, 1, classes)
    local = Local.of(base.shifted(b), [o.shifted(b) for o in ahead], [], 1e-2, biases=True)
    scores, labels = base.labelled()
    f, y = torch.tensor(scores.astype(float)), torch.tensor(labels)
    q = torch.tensor(local.scale * contrasts(classes))

    def losses(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(f + torch.tensor(b) + q @ x, y, reduction="none")

    x = torch.zeros(classes - 1).double()
    assert base.shifted(b).losses == pytest.approx(losses(x).numpy(), rel=1e-6)
    gradient = torch.func.grad(lambda x: losses(x).mean())(x).numpy()
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: losses(x).mean()))(x).numpy()
    assert local.directions == 3
    assert local.gradient[3:] == pytest.approx(gradient, abs=1e-6)
    assert local.gauss_newton[3:, 3:] == pytest.approx(hessian, abs=1e-6)
    plain = Local.of(base.shifted(b), [o.shifted(b) for o in ahead], [], 1e-2)
    assert local.gradient[:3] == pytest.approx(plain.gradient)
    assert local.gauss_newton[:3, :3] == pytest.approx(plain.gauss_newton)
    assert local.mean_curvature == pytest.approx(plain.mean_curvature)
    assert local.gradient_curvature != pytest.approx(plain.gradient_curvature)
    assert local.without_biases().gradient_curvature == pytest.approx(plain.gradient_curvature)


def told(method, classes: int, steps: int = 1) -> Probe:
    """A probe that sees the same outcomes at every local step."""
    derived = method.derived
    probe = Probe(
        client=0,
        round=0,
        steps=steps,
        directions=3,
        mu=1e-2,
        divided=method.divided,
        solve=lambda local, facts: method.solve(local, facts, method.hyper, derived),
        biases=lambda facts: method.biases(derived, facts),
        tuned=method.labels > 0,
    )
    seen = outcomes(classes)
    while (point := probe.ask()) is not None:
        probe.tell(seen[point.direction + 1 if point.sign else 0])
    return probe


@pytest.mark.parametrize("classes", [2, 10])
def test_a_method_that_solves_moves_biases_by_its_own_step(classes):
    probe = told(label_bias(SubspaceNewton(ridge=0.7), classes), classes)
    base, *ahead = outcomes(classes)
    local = Local.of(base, ahead, [], probe.mu, biases=True)
    size = 3 + classes - 1
    solid = local.gauss_newton + 0.7 * local.mean_curvature * np.eye(size)
    alpha = np.linalg.inv(solid) @ local.gradient
    assert probe.scalars[0] == pytest.approx(alpha[:3], rel=1e-4)
    fall = [probe.facts[f"x{j}"] for j in range(1, classes)]
    assert fall == pytest.approx(0.5 * local.scale * alpha[3:], rel=1e-4)
    jacobian = np.stack([(o.labelled()[0] - base.labelled()[0]) / 1e-2 for o in ahead])
    rms = math.sqrt(((jacobian @ contrasts(classes)) ** 2).mean())
    assert local.scale == pytest.approx(3 * rms, rel=1e-3)


@pytest.mark.parametrize("method", [ZoSgd(), auto_lr(HiSo())], ids=["zo_sgd", "auto"])
def test_others_move_biases_by_half_a_step_of_newton(method):
    probe = told(label_bias(method, 2), 2)
    scores, labels = outcomes(2)[0].labelled()
    gap = (scores[:, 0] - scores[:, 1]).astype(float)  # along (1, −1)/√2: f₀ − f₁ grows by √2
    p = 1 / (1 + np.exp(-gap))
    slope = (p - (labels == 0)) * math.sqrt(2)
    curvature = max((2 * p * (1 - p)).mean(), (slope**2).mean())
    expected = 0.5 * slope.mean() / (curvature * (1 + 14 / len(labels)))
    assert probe.facts["x1"] == pytest.approx(expected, rel=1e-5)
    assert probe.scalars[0] == pytest.approx(told(method_of_scores(method), 2).scalars[0], rel=1e-4)


def method_of_scores(method):
    return method if method.auto else auto_lr(method)


def test_local_steps_see_the_biases_of_those_before():
    """With the same outcomes at every step, only b can make the second step another."""
    method = label_bias(ZoSgd(lr=0.0), 3)
    one, two = told(method, 3, 1), told(method, 3, 2)
    by = {name: two.facts[name] - one.facts[name] for name in one.facts}
    biases = method.biases(method.derived, one.facts)
    base, *ahead = (o.shifted(biases) for o in outcomes(3))
    local = Local.of(base, ahead, [], two.mu, biases=True)
    _, again = method.solve(local, {}, method.hyper, method.derived)
    assert by == pytest.approx(again, rel=1e-4)
    assert by != pytest.approx(one.facts, rel=1e-2)


def test_identities():
    method = label_bias(auto_lr(HiSo(nu=0.1)), 4)
    assert method == label_bias(auto_lr(HiSo(nu=0.1, lr=1.0)), 4)
    assert method.facts == ("t", "x1", "x2", "x3")
    identity = Identity(method=method, seed=0)
    assert Identity.parse(identity.text).method == method
    assert identity != Identity(method=label_bias(auto_lr(HiSo(nu=0.1)), 3), seed=0)
    assert "labels" not in Identity(method=HiSo(), seed=0).text
    with pytest.raises(ValueError, match="1 labels"):
        label_bias(HiSo(), 1)


def test_biases_are_part_of_the_digest(tmp_path, base):
    """Of two replicas with the same weights, and other biases."""
    simulate(out=tmp_path / "run", **base | {"rounds": 1, "local_steps": 2})
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        (record,), identity = ledger.records(), ledger.identity
    other = replace(record, facts={**record.facts, "x1": record.facts["x1"] + 0.5})
    digests, weights = set(), []
    for folded in (record, other):
        torch.manual_seed(0)
        replica = Replica(torch.nn.Linear(3, 2), identity)
        replica.replay([folded])
        digests.add(replica.digest())
        weights.append(replica.weights)
        assert replica.biases[0] == -replica.biases[1] != 0
    assert torch.equal(*weights)
    assert len(digests) == 2


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"local_steps": 2, "scheme": "central"},
        {"method": "hiso", "lr": 0.01, "per_client": True, "weighting": "examples"},
        {"method": "hizoo", "lr": "auto", "snapshot_every": 1},
    ],
    ids=lambda how: "-".join(map(str, how.values())) or "plain",
)
def test_a_run_that_stops_goes_on_as_if_it_had_not(tmp_path, base, how):
    whole = simulate(out=tmp_path / "whole", **base | how)
    simulate(out=tmp_path / "parts", **base | how | {"rounds": 2})
    parts = simulate(out=tmp_path / "parts", **base | how, change={"rounds": 6})
    assert (parts["digest"], parts["chain"]) == (whole["digest"], whole["chain"])
    late = evaluate_run(tmp_path / "whole")
    assert (late["digest"], late["loss"]) == (whole["digest"], whole["loss_after"])
    assert math.fsum(late["label_bias"]) == pytest.approx(0.0, abs=1e-12)
    with Ledger.read(tmp_path / "whole" / "ledger.sqlite") as ledger:
        assert all(record.facts["x1"] for record in ledger.records())


def test_evaluation_uses_the_biases(tmp_path, base):
    """With weights that stand still, biases alone change the loss, to that of shifted scores."""
    still = base | {"method": "zo_sgd", "lr": 0.0}
    told = simulate(out=tmp_path / "run", **still)
    settings = parse_settings(still)
    workload = load_workload(settings, settings.make_method(), Silent())
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        replica = Replica(workload.module, ledger.identity)
        replica.replay(ledger.records())
    replica.write()
    objective = workload.objective(replica.rows, joint=True)
    scores, labels = objective.measure(workload.test).labelled()
    at = torch.tensor(scores.astype(float) + replica.biases)
    loss = torch.nn.functional.cross_entropy(at, torch.tensor(labels))
    assert told["loss_after"] == pytest.approx(float(loss), rel=1e-6)
    right = [
        float((s.argmax(1) == torch.tensor(labels)).double().mean())
        for s in (at, torch.tensor(scores))
    ]
    after = told["metrics_after"]
    assert [after["accuracy"], after["accuracy_without_bias"]] == right
    done = export_model(tmp_path / "run", tmp_path / "model")
    assert [done["accuracy"], done["accuracy_without_bias"]] == right
    assert told["loss_after"] != pytest.approx(told["loss_before"], rel=1e-4)


def test_a_run_that_is_opened_has_its_biases(tmp_path, base):
    simulate(out=tmp_path / "run", **base)
    run = open_run(tmp_path / "run")
    assert run.label_bias.tolist() == evaluate_run(tmp_path / "run")["label_bias"]
    simulate(out=tmp_path / "plain", **base | {"label_bias": False, "rounds": 1})
    assert open_run(tmp_path / "plain").label_bias is None


def test_a_federation(tmp_path):
    """One label for all: biases learn it before the weights do."""
    shards = [[(torch.full((1,), 0.01), 1)] * 8] * 2
    method = label_bias(SubspaceNewton(), 3)
    arguments = {"loss": lambda model, batch: (model(batch[0]), batch[1]), "batch_size": 4}
    arguments |= {"sample": 2, "directions": 2}
    torch.manual_seed(0)
    net = torch.nn.Linear(1, 3, bias=False)
    with Federation(
        net, method, shards=shards, ledger=tmp_path / "log", mu=1e-2, **arguments
    ) as fed:
        rounds = list(fed.rounds(10))
        assert fed.label_bias.argmax() == 1
        assert rounds[-1].loss < 0.3 * rounds[0].loss


def test_images(tmp_path):
    digits = {"task": "digits", "model": "mlp", "label_bias": True, "rounds": 8, "eval_every": 0}
    told = simulate(out=tmp_path / "run", method="subspace_newton", **digits)
    assert told["loss_after"] < told["loss_before"]
    assert evaluate_run(tmp_path / "run")["loss"] == told["loss_after"]


def test_what_it_does_not_go_with_is_refused(tmp_path, base):
    (tmp_path / "text.csv").write_text("text\n" + "".join(f"film {i}\n" for i in range(30)))
    with pytest.raises(SettingsError):
        simulate(out=tmp_path / "a", **base | {"task": "text", "data": str(tmp_path / "text.csv")})
    simulate(out=tmp_path / "run", **base | {"rounds": 1})
    with pytest.raises(RunConflict):
        simulate(out=tmp_path / "run", change={"label_bias": False, "rounds": 2})


def test_a_method_with_curvature_keeps_it(tmp_path, base):
    told = simulate(out=tmp_path / "run", **base | {"method": "hizoo", "lr": 0.01, "rounds": 2})
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        assert all(record.curvature is not None for record in ledger.records())
        assert isinstance(ledger.identity.method, HiZoo)
    assert math.isfinite(told["loss_after"])
