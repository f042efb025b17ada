"""The state rebuilt without a model, against the state of the model's own replica."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from hiso import Replica, simulate
from hiso.core.method.registry import METHODS
from hiso.report.gather import read_runs
from hiso.report.standin import state_history
from hiso.ring.ledger.ledger import Ledger
from hiso.run.observer import Silent

pytestmark = pytest.mark.usefixtures("one_thread")


def history_of(path):
    (run,) = read_runs([path])
    return state_history(run, Silent())


def states(path, model, method) -> list[torch.Tensor]:
    """h at every position, of the first parameter of the real model."""
    with Ledger.open(path / "ledger.sqlite") as ledger:
        module = AutoModelForCausalLM.from_pretrained(model)
        replica = Replica(module, ledger.identity)
        first = slice(next(iter(replica.layout)).numel)
        found = [replica.state["h"][first].clone()]
        for record in ledger.records():
            replica.replay([record])
            found.append(replica.state["h"][first].clone())
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hiso", {}),
        ("hizoo", {"noise": "gaussian", "per_client": True, "nu": 0.1}),
    ],
)
def test_it_is_the_models_own_state(tmp_path, tiny_model, base, monkeypatch, name, settings):
    simulate(out=tmp_path / "run", **base | settings | {"method": name, "seed": 5})
    simulate(out=tmp_path / "run", change={"lr": 0.02, "nu": 0.2, "rounds": 8})
    real = states(tmp_path / "run", tiny_model, METHODS[name])

    # a sample as large as the model's first parameter: bit for bit
    monkeypatch.setattr("hiso.report.standin.LARGEST", real[0].numel())
    history = history_of(tmp_path / "run")
    assert (history.name, history.sample) == ("h", real[0].numel())
    assert history.position.tolist() == list(range(9))
    for at, state in enumerate(real):
        values = state.numpy()
        counts = (history.share[:, at] * values.size).round().astype(int)
        assert counts.tolist() == np.histogram(values, history.edges)[0].tolist()
        quantiles = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
        assert history.quantiles[:, at].tolist() == quantiles

    # as large as the whole model: another sample of the same law
    monkeypatch.undo()
    history = history_of(tmp_path / "run")
    assert history.sample == 44_192
    for at, state in enumerate(real):
        share = np.histogram(state.numpy(), history.edges)[0] / state.numel()
        assert np.abs(share - history.share[:, at]).max() < 0.02


def test_shares_are_shares(runs):
    history = history_of(runs["unfinished"])
    assert history.sample == 2**17  # nothing tells yet how many weights there are
    np.testing.assert_allclose(history.share.sum(axis=0), 1)
    assert (np.diff(history.edges) > 0).all()
    start = np.flatnonzero(history.share[:, 0])
    assert len(start) == 1  # h begins at 1
    assert history.edges[start[0]] <= 1 <= history.edges[start[0] + 1]


def test_where_nothing_is_learned_there_is_nothing(runs, tmp_path, base):
    assert history_of(runs["zo"]) is None
    assert history_of(runs["bare"]) is None
    simulate(out=tmp_path / "run", **base | {"method": "momentum", "rounds": 2})
    assert history_of(tmp_path / "run") is None
