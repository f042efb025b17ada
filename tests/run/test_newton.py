"""`subspace_newton` as a run: on every engine, resumed, late, and refused where it cannot be."""

from __future__ import annotations

import json

import pytest

from hiso import SubspaceNewton, evaluate_run, simulate
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.ring.wire import (
    plan_from_bytes,
    plan_to_bytes,
    reply_from_bytes,
    reply_to_bytes,
)
from hiso.run.observer import Silent
from hiso.run.settings import parse_settings
from hiso.run.workload.base import make_replica
from hiso.run.workload.load import load_workload

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def base(small_run) -> dict:
    rest = {key: value for key, value in small_run.items() if key != "lr"}
    return rest | {"method": "subspace_newton", "directions": 3}


def log_of(out) -> list[bytes]:
    with Ledger.read(out / "ledger.sqlite") as ledger:
        return [record.to_bytes() for record in ledger.records()]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"scheme": "central", "local_steps": 2},
        {"per_client": True, "weighting": "examples"},
        {"dtype": "bfloat16", "mu": 1e-2},
        {"joint": False},
    ],
    ids=["plain", "central", "own", "bfloat16", "apart"],
)
def test_a_run_that_stops_goes_on_as_if_it_had_not(tmp_path, base, how):
    whole = simulate(out=tmp_path / "whole", **base | how)
    assert whole["settings"]["lr"] == 0.5
    simulate(out=tmp_path / "parts", **base | how | {"rounds": 2})
    parts = simulate(out=tmp_path / "parts", change={"rounds": 6})
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert parts["digest"] == whole["digest"]
    late = evaluate_run(tmp_path / "whole")
    assert (late["digest"], late["loss"]) == (whole["digest"], whole["loss_after"])
    directions = 3 * (2 if how.get("per_client") else 1)
    steps = how.get("local_steps", 1)
    with Ledger.read(tmp_path / "whole" / "ledger.sqlite") as ledger:
        records = ledger.records()
        assert ledger.derived_at(ledger.identity.method, {"c": 0.0})["c"] > 0
        assert [r.bytes_up for r in ledger.rounds()] == [4 * 2 * (3 * steps + 1)] * 6
    assert all(r.terms == directions * steps and r.facts["t"] > 0 for r in records)
    assert records[0].changes == {"ridge": pytest.approx(14 * 3**0.5 / (2 * 4))}
    assert not any(record.changes for record in records[1:])
    passes = {"central": 7}.get(how.get("scheme", ""), 4) * steps * 2
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    rounds = [line for line in map(json.loads, lines) if line["kind"] == "round"]
    assert {line["passes"] for line in rounds} == {passes}


def test_clients_that_answer_over_the_wire_make_the_same_log(tmp_path, base):
    """Each with a model of its own, whose facts and scalars travel as bytes."""
    asked = base | {"joint": False, "local_steps": 2, "eval_every": 0, "rounds": 4}
    summary = simulate(out=tmp_path / "run", **asked)
    settings = parse_settings(asked)
    method = settings.make_method()
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        identity = ledger.identity
    clients = []
    for index in range(settings.clients):
        workload = load_workload(settings, method, Silent())
        replica = make_replica(identity, workload, "full", Silent())
        objective = workload.objective(replica.rows, joint=False)
        clients.append(Client(index, workload.shards[index], replica, objective))
    with Ledger.create(tmp_path / "own.sqlite", identity, {}) as ledger:
        server = Server(ledger, settings.make_rounds(method))
        for _ in range(4):
            for plan in server.ask():
                reply = clients[plan.client].answer(plan_from_bytes(plan_to_bytes(plan)))
                verdict = server.tell(reply_from_bytes(reply_to_bytes(reply)))
                assert verdict.accepted, verdict.reason
            server.close()
        mine = [record.to_bytes() for record in ledger.records()]
        late = clients[0]
        late.catch_up(server.rest(0, late.replica.position))
        assert f"{late.replica.digest():016x}" == summary["digest"]
    assert mine == log_of(tmp_path / "run")


def test_the_ridge_follows_the_round_unless_it_is_set(tmp_path, base):
    simulate(out=tmp_path / "run", **base)
    simulate(out=tmp_path / "run", change={"directions": 6, "rounds": 7})
    simulate(out=tmp_path / "run", change={"ridge": 0.5, "rounds": 8})
    simulate(out=tmp_path / "run", change={"directions": 2, "rounds": 9})
    simulate(out=tmp_path / "run", change={"ridge": 0, "rounds": 10})
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        changes = [record.changes for record in ledger.records()]
    expected = {0: 14 * 3**0.5 / 8, 6: 14 * 6**0.5 / 8, 7: 0.5, 9: 14 * 2**0.5 / 8}
    found = {r: changed["ridge"] for r, changed in enumerate(changes) if changed}
    assert found == {r: pytest.approx(ridge) for r, ridge in expected.items()}


def test_a_method_object_and_flags_make_the_same_run(tmp_path, base):
    rest = {key: value for key, value in base.items() if key != "method"}
    flags = simulate(out=tmp_path / "flags", **base, ridge=2.0, lr=0.25)
    made = simulate(out=tmp_path / "made", method=SubspaceNewton(ridge=2.0, lr=0.25), **rest)
    assert flags["digest"] == made["digest"]


def test_mu_auto_judges_the_gradient_from_scores(tmp_path, base):
    summary = simulate(out=tmp_path / "run", **base | {"mu": "auto", "rounds": 2})
    assert summary["settings"]["mu"] in (3e-4, 1e-3, 3e-3)


def test_free_text_is_learned_token_by_token(tmp_path, base):
    texts = [f"the film is {word} and {word}" for word in ("good", "bad", "fine", "dull")] * 5
    (tmp_path / "text.csv").write_text("text\n" + "\n".join(texts) + "\n")
    base |= {"task": "text", "data": str(tmp_path / "text.csv")}
    whole = simulate(out=tmp_path / "whole", **base)
    simulate(out=tmp_path / "parts", **base | {"rounds": 2})
    parts = simulate(out=tmp_path / "parts", change={"rounds": 6})
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert parts["digest"] == whole["digest"]
    assert whole["loss_after"] < whole["loss_before"]
