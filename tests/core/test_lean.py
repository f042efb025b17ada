"""Lean memory: the same bits without a compute copy of the whole model."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.method.registry import HiSo
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import SettingsError

from ..identities import identity_of
from .conftest import TinyNet, make_record

POINTS = (None, Point(1, 0, 0, 1, 1), Point(1, 1, 3, 0, -1))


def replicas(dtype: torch.dtype) -> list[Replica]:
    made = [
        Replica(TinyNet(), identity_of(HiSo(lr=0.1), seed=4, dtype=dtype), memory=m)
        for m in ("full", "lean")
    ]
    for replica in made:
        replica.replay([make_record(np.random.default_rng(0), replica.method, 0)])
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_outputs_and_rows_are_those_of_full_memory(dtype):
    full, lean = replicas(dtype)
    walks = [replica.walk() for replica in (full, lean)]
    for walk in walks:
        walk.step(round=1, step=0, stream=0, coefficients=np.ones(2, np.float32))
    ids, index = torch.arange(20), torch.tensor([0, 1, 60])
    for point in POINTS:
        for use in (False, True):
            outputs = []
            for replica, walk in zip((full, lean), walks, strict=True):
                replica.write(point, mu=0.1, walk=walk if use else None)
                rows = replica.rows(replica.module.embed, index)
                outputs.append((replica.module(ids), rows))
            assert torch.equal(outputs[0][0], outputs[1][0])
            assert torch.equal(outputs[0][1], outputs[1][1])
    assert full.digest() == lean.digest()


@torch.no_grad()
def test_parameters_exist_only_while_their_module_runs():
    net = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 50), nn.Linear(50, 5))
    replica = Replica(net, identity_of(HiSo()), memory="lean")
    assert sum(p.numel() for p in net.parameters()) == 0
    alive: list[int] = []

    def count(*_: object) -> None:
        alive.append(sum(p.numel() for p in net.parameters()))

    for part in net:
        part.register_forward_hook(count, prepend=True)
    replica.write(Point(0, 0, 0, 0, 1), mu=0.1)
    net(torch.zeros(2, 30))
    assert alive == [1240, 0, 2050, 255]
    assert sum(p.numel() for p in net.parameters()) == 0


def test_a_failing_forward_pass_leaves_nothing_behind():
    net = nn.Linear(30, 40)
    Replica(net, identity_of(HiSo()), memory="lean")
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 31))
    assert net.weight.numel() == 0


def test_the_model_s_own_weights_are_released():
    net = nn.Linear(300, 400)
    storage = weakref.ref(net.weight.data.untyped_storage())
    replica = Replica(net, identity_of(HiSo()), memory="lean")
    assert storage() is None
    assert replica._compute.numel() == 0


def test_other_kinds_of_memory_are_refused():
    with pytest.raises(SettingsError, match="'tiny'"):
        Replica(nn.Linear(2, 2), identity_of(HiSo()), memory="tiny")
