"""Federations on digits, to look inside."""

from __future__ import annotations

from typing import Any

import pytest

from hiso.core.method.registry import ZoSgd
from hiso.lab.baselines.baseline_settings import parse_baseline
from hiso.lab.baselines.federation import Federation
from hiso.run.observer import Silent
from hiso.run.workload.base import make_replica
from hiso.run.workload.load import load_workload

DIGITS: dict[str, Any] = {"task": "digits", "model": "cnn", "batch_size": 16, "eval_every": 0}


def make_federation(**given: Any) -> Federation:
    settings = parse_baseline(DIGITS | given)
    plain, method = settings.as_hiso(), ZoSgd(lr=settings.hyper["lr"])
    workload = load_workload(plain, method, Silent())
    replica = make_replica(workload.identity, workload, plain.memory, Silent())
    return Federation(settings, workload, replica)


@pytest.fixture
def federation():
    return make_federation
