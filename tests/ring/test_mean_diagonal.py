"""One number in place of HiSo's diagonal: it is the mean of that diagonal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso import HiSo, Replica, simulate
from hiso.core.method.derived import remember_all
from hiso.core.method.registry import SubspaceNewton, ZoSgd
from hiso.core.record import Record
from hiso.errors import Diverged, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.mean_diagonal import MeanDiagonal
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.launch import evaluate_run

from ..identities import identity_of
from .standin import clients_of, new_ledger, one_round

pytestmark = pytest.mark.usefixtures("one_thread")
NU = 0.1
MEAN = MeanDiagonal(NU)


def record(round: int, coefficients: np.ndarray) -> Record:
    count = len(coefficients)
    zeros = np.zeros(count, np.uint16)
    c = coefficients.astype(np.float32)
    return Record(round, zeros, zeros.astype(np.uint32), np.arange(count, dtype=np.uint16), c)


@pytest.mark.parametrize("size", [0.7, 3.0])
def test_it_is_hisos_diagonal_with_every_weight_given_the_mean(size):
    """HiSo measures along u/√h, the method without a diagonal along u: c_u = c_z·√h̄."""
    rng = np.random.Generator(np.random.Philox(1))
    replica = Replica(nn.Linear(400, 500), identity_of(HiSo(nu=NU, floor=0.0)))
    h = 1.0
    for r in range(30):
        along_z = size * rng.standard_normal(5)
        replica.replay([record(r, along_z)])
        parts = [replica.state["h"][e.offset : e.offset + e.numel] for e in replica.layout]
        mean = float(torch.cat(parts).double().mean())
        level = {"weights": replica.weights, "h": torch.full_like(replica.state["h"], mean)}
        replica.restore(level, replica.position, replica.chain, replica.hyper)
        h = MEAN.remember(h, record(r, along_z * np.sqrt(h)))
        assert h > HiSo.floor
        assert h == pytest.approx(mean, rel=0.01)


def test_only_the_first_local_step_counts():
    one = record(0, np.array([2.0, 1.0]))
    step, direction = np.array([0, 0, 1, 1], np.uint16), np.array([0, 1, 0, 1], np.uint16)
    c = np.array([2.0, 1.0, 50.0, 60.0], np.float32)
    two = Record(0, step, np.zeros(4, np.uint32), direction, c)
    assert MEAN.remember(1.0, two) == MEAN.remember(1.0, one)


def test_it_has_a_floor():
    assert remember_all(MEAN, [record(r, np.zeros(2)) for r in range(100)], 1.0) == HiSo.floor


def test_records_at_once_or_one_by_one():
    rng = np.random.Generator(np.random.Philox(2))
    records = [record(r, rng.standard_normal(3)) for r in range(20)]
    h = 1.0
    for each in records:
        h = MEAN.remember(h, each)
    assert remember_all(MEAN, records, 1.0) == h
    assert remember_all(MeanDiagonal(0.0), records, 1.0) == 1.0


def test_a_run_logs_the_rate_in_force_and_goes_on_after_a_stop(tmp_path, base):
    base |= {"method": "zo_sgd", "normalise": NU, "rounds": 8}
    whole = simulate(out=tmp_path / "whole", **base)
    simulate(out=tmp_path / "parts", **base | {"rounds": 3})
    given = {key: value for key, value in base.items() if key != "rounds"}
    parts = simulate(out=tmp_path / "parts", **given, change={"rounds": 8})
    assert parts["digest"] == whole["digest"]
    assert evaluate_run(tmp_path / "whole")["digest"] == whole["digest"]
    with Ledger.open(tmp_path / "whole" / "ledger.sqlite") as ledger:
        for position in range(1, 9):
            h = remember_all(MEAN, ledger.records(0, position - 1), 1.0)
            lr = ledger.hyper_at(position)["lr"]
            assert lr == pytest.approx(base["lr"] / h, rel=1e-6)
    plain = simulate(out=tmp_path / "plain", **base | {"normalise": 0.0})
    assert plain["digest"] != whole["digest"]
    assert whole["bytes_down"] > plain["bytes_down"]


@pytest.mark.parametrize("lr", [30.0, 0.5])
def test_advice_after_divergence_halves_the_lr_that_is_set(tmp_path, lr):
    """Not the one in force, which is divided by the mean diagonal."""
    rules = RoundSettings(
        clients=2, sample=2, steps=1, directions=3, mu=1e-3, normalise=0.9, hyper={"lr": lr}
    )
    with new_ledger(tmp_path / "ledger.db") as ledger:
        server = Server(ledger, rules)
        clients = clients_of(ledger, 2)
        for _ in range(2):
            one_round(server, clients)
        assert server.hyper["lr"] != pytest.approx(lr, rel=1e-3)
        assert server.diverged(Diverged("it did")).lr == lr / 2


def test_mu_is_divided_by_the_root_of_the_mean(tmp_path):
    rules = RoundSettings(
        clients=2, sample=2, steps=1, directions=3, mu=1e-3, normalise=0.5, hyper={"lr": 0.05}
    )
    with new_ledger(tmp_path / "ledger.db") as ledger:
        server, clients = Server(ledger, rules), clients_of(ledger, 2)
        for _ in range(4):
            h = rules.hyper["lr"] / server.ask()[0].changes.get("lr", server.hyper["lr"])
            assert [plan.mu for plan in server.ask()] == pytest.approx([1e-3 / h**0.5] * 2)
            one_round(server, clients)
        assert h != pytest.approx(1.0, rel=1e-3)


def test_what_makes_no_sense_is_refused(tmp_path, base):
    with pytest.raises(SettingsError, match="hiso has curvature of its own"):
        simulate(out=tmp_path / "run", **base | {"method": "hiso", "normalise": NU})
    with new_ledger(tmp_path / "solved.db", SubspaceNewton()) as ledger:
        rules = RoundSettings(
            clients=1, sample=1, steps=1, directions=1, mu=1e-3, normalise=NU, hyper={"lr": 0.5}
        )
        with pytest.raises(SettingsError, match="subspace_newton already divides by curvature"):
            Server(ledger, rules)
    common = {"clients": 2, "sample": 1, "steps": 1, "directions": 1, "mu": 1e-3}
    with pytest.raises(SettingsError, match="name lr among hyper"):
        RoundSettings(**common, normalise=NU)
    RoundSettings(**common, normalise=NU, hyper=ZoSgd().hyper)
