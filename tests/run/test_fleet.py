"""Runs in which some clients answer by backward passes."""

from __future__ import annotations

import numpy as np
import pytest

from hiso import evaluate_run, simulate
from hiso.core.identity import Identity
from hiso.errors import SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.inspect import inspect_run
from hiso.run.settings import parse_settings

pytestmark = pytest.mark.usefixtures("one_thread")


def records_of(out):
    with Ledger.read(out / "ledger.sqlite") as ledger:
        return ledger.records()


def test_it_is_no_part_of_what_the_run_is(tmp_path, base):
    """One run that goes on with another fleet; what is counted of it; and its replay."""
    out = tmp_path / "run"
    base |= {"eval_every": 0, "local_steps": 2, "directions": 5}
    forward = simulate(out=tmp_path / "forward", **base)
    simulate(out=out, **base | {"rounds": 2})
    simulate(out=out, change={"backward_clients": 4, "rounds": 4})
    mixed = simulate(out=out, change={"backward_clients": 1, "rounds": 6})
    assert mixed["run"] == forward["run"]
    assert (mixed["bytes_up"], mixed["bytes_down"]) == (forward["bytes_up"], forward["bytes_down"])
    assert mixed["loss_after"] == pytest.approx(forward["loss_after"], rel=0.05)
    assert mixed["digest"] == evaluate_run(out)["digest"] != forward["digest"]
    for line in inspect_run(out, 6)["rounds"]:  # a backward pass counts as two forward ones
        able = [0, 0, 4, 4, 1, 1][line["round"]]
        assert line["passes"] == 2 * sum(3 if client < able else 6 for client in line["clients"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["rotten_tomatoes", "text"])
def test_a_language_model_answers_as_by_differences(tmp_path, base, dtype, task):
    """The head's rows are float32 in half precision, and tied to the embedding here."""
    base |= {"eval_every": 0, "rounds": 1, "dtype": dtype, "task": task, "directions": 6}
    base |= {"scheme": "central", "mu": 2e-3 if dtype == "float32" else 5e-3}
    simulate(out=tmp_path / "a", **base)
    simulate(out=tmp_path / "b", backward_clients=4, **base)
    (near,), (exact,) = records_of(tmp_path / "a"), records_of(tmp_path / "b")
    apart = np.linalg.norm(near.coefficient - exact.coefficient)
    assert apart < (0.02 if dtype == "float32" else 0.2) * np.linalg.norm(exact.coefficient)


@pytest.mark.parametrize(
    "odd",
    [
        {"backward_clients": 7},
        {"backward_clients": -1},
        {"method": "subspace_newton", "lr": 0.5},
        {"method": "hizoo"},
        {"lr": "auto"},
        {"memory": "lean"},
    ],
    ids=["more than there are", "fewer than none", "scores", "curvature", "auto", "lean"],
)
def test_who_cannot_is_refused(odd):
    with pytest.raises(SettingsError, match="backward"):
        parse_settings({"method": "hiso", "clients": 6, "backward_clients": 2, "lr": 0.1} | odd)


@pytest.mark.parametrize("how", ["probe", "settings"])
def test_a_worker_answers_as_the_simulation_does(tmp_path, base, how):
    """By its own choice, whatever the settings say that it shares with the others."""
    pytest.importorskip("flwr")
    from hiso.flower.envelope import Envelope, split
    from hiso.flower.worker import Worker
    from hiso.ring.server import Server
    from hiso.ring.wire import plan_to_bytes, reply_from_bytes

    base |= {"eval_every": 0, "joint": False}
    expected = simulate(out=tmp_path / "run", backward_clients=4, **base)
    settings = parse_settings(base | ({} if how == "probe" else {"backward_clients": 4}))
    folder, probe = tmp_path / "worker", "backward" if how == "probe" else "forward"
    folder.mkdir()
    (folder / "site.toml").write_text('batches = "seed"\n')
    worker = Worker(settings, folder, own=None, alive=lambda: None, probe=probe)
    identity = worker.hello([0], None).facts["identity"]
    method = settings.make_method()
    with Ledger.create(tmp_path / "ledger", Identity.parse(identity), {}) as ledger:
        server = Server(ledger, settings.make_rounds(method))
        while ledger.position < base["rounds"]:
            for plan in server.ask():
                request = Envelope("round", {"identity": identity}, plan_to_bytes(plan))
                answer = worker.handle(request, [plan.client])
                assert server.tell(reply_from_bytes(*split(answer.body))).accepted
            server.close()
        rest = server.rest(0, worker.position)
    folded = worker.handle(Envelope("fold", {"identity": identity}, plan_to_bytes(rest)), [0])
    worker.close()
    assert folded.facts["digest"] == expected["digest"]


def test_a_worker_that_cannot_says_so_before_it_loads(tmp_path, base):
    pytest.importorskip("flwr")
    from hiso.flower.worker import Worker

    settings = parse_settings(base | {"method": "hizoo", "model": str(tmp_path / "missing")})
    with pytest.raises(SettingsError, match="backward"):
        Worker(settings, tmp_path, own=(0,), alive=lambda: None, probe="backward")
