"""Which settings a baseline has, and what is said of the others."""

from __future__ import annotations

import inspect
import json

import pytest
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedYogi

from hiso.errors import SettingsError
from hiso.lab.baselines.baseline_settings import (
    BASELINES,
    BaselineSettings,
    accepted,
    parse_baseline,
)
from hiso.run.settings import Values, parse_settings


def test_all_problems_are_told_at_once():
    with pytest.raises(SettingsError) as error:
        parse_baseline({"method": "fedavg", "batchsize": 3, "beta_1": 1.0, "sample": 9, "mu": 0.1})
    text = str(error.value)
    assert "batchsize: unknown key (did you mean 'batch_size'?)" in text
    assert "beta_1 = 1.0: Input should be less than 1" in text
    assert "mu: fedavg has no such setting; of its own it has lr" in text
    assert "sample = 9 must lie in [1, clients = 6]" in text


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"method": "fedprox"}, "unknown baseline 'fedprox'"),
        ({"method": "hiso"}, "known: fedavg, fedadam, fedyogi, fedadagrad, fedzo"),
        ({"method": "fedavg", "server_lr": 1.0}, "server_lr: fedavg has no such setting"),
        ({"method": "fedadagrad", "beta_2": 0.9}, "beta_2: fedadagrad has no such setting"),
        ({"method": "fedadam", "nu": 0.1}, "nu: fedadam has no such setting"),
        ({"method": "fedadam", "directions": 5}, "directions: fedadam has no such"),
        ({"method": "fedadam", "tau": 0}, "tau = 0"),
        ({"method": "fedzo", "per_client": True}, "per_client: fedzo has no such setting"),
        ({"method": "fedzo", "mu": "auto"}, "mu: auto is for hiso's own methods"),
        ({"method": "fedzo", "dtype": "bfloat16"}, "dtype: baselines compute in float32"),
        ({"partition": "column"}, "partition = column and partition_column go together"),
        ({"lr": -1}, "lr = -1"),
    ],
)
def test_what_a_method_does_not_have_is_refused(given, problem):
    with pytest.raises(SettingsError) as error:
        parse_baseline(given)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("fedadam", FedAdam), ("fedyogi", FedYogi), ("fedadagrad", FedAdagrad)],
)
def test_defaults_are_flowers(method, strategy):
    known = inspect.signature(strategy.__init__).parameters
    names = {"lr": "eta_l", "server_lr": "eta"}
    for name, value in BASELINES[method].items():
        assert known[names.get(name, name)].default == value
    assert parse_baseline({"method": method}).hyper == BASELINES[method]


@pytest.mark.parametrize("method", BASELINES)
def test_facts_are_what_the_method_has_and_make_the_same_settings(method):
    settings = parse_baseline({"method": method, "lr": 0.5, "seed": 2**63})
    facts = json.loads(json.dumps(settings.facts()))
    rare = {"task_definition", "prompt_style"}  # there only if they are given
    assert facts.keys() == accepted(method) - rare
    assert (facts["lr"], facts["seed"]) == (0.5, 2**63)
    assert parse_baseline(facts).facts() == facts
    assert ("mu" in facts) == (method == "fedzo")


def test_what_is_shared_with_hiso_is_the_same():
    shared = accepted("fedzo") - {"method", "lr"}
    ours, theirs = BaselineSettings().model_dump(), Values().model_dump()
    assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
    other = {"clients": 9, "seed": 3, "alpha": 0.1, "partition": "dirichlet", "mu": 0.01}
    plain = parse_baseline({"method": "fedzo", "lr": 0.2, **other}).as_hiso()
    assert plain == parse_settings({"method": "zo_sgd", "lr": 0.2, "per_client": True, **other})
