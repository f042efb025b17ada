"""A replica whose module or weights somebody else has changed refuses to go on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from hiso.core.method.registry import HiSo, Momentum, ZoSgd
from hiso.core.replica.replica import Replica
from hiso.errors import ProtocolError

from ..identities import identity_of
from .conftest import make_record, make_replica

Tamper = Callable[[Replica], object]


def module(replica: Replica) -> nn.Module:
    return replica.module


def replace_parameter(replica: Replica) -> None:
    replica.module.body = nn.Parameter(replica.module.body.detach().clone())


def replace_frozen(replica: Replica) -> None:
    replica.module.frozen = nn.Parameter(torch.zeros(37), requires_grad=False)


def add_parameter(replica: Replica) -> None:
    replica.module.more = nn.Parameter(torch.zeros(3))


def assign(replica: Replica) -> None:
    state = {name: torch.zeros_like(p) for name, p in replica.module.state_dict().items()}
    replica.module.load_state_dict(state, assign=True)


def load_in_place(replica: Replica) -> None:
    state = {name: torch.zeros_like(p) for name, p in replica.module.state_dict().items()}
    replica.module.load_state_dict(state)


@torch.no_grad()
def train_in_place(replica: Replica) -> None:
    replica.module.body.sub_(1.0)


MODULE: list[Tamper] = [
    lambda replica: replica.module.double(),
    lambda replica: replica.module.bfloat16(),
    replace_parameter,
    replace_frozen,
    add_parameter,
    assign,
]
FULL_ONLY: list[Tamper] = [load_in_place, train_in_place]
BUFFERS: list[Tamper] = [
    lambda replica: replica.weights.zero_(),
    lambda replica: replica.state["h"].add_(1.0),
    lambda replica: replica.weights[:1].fill_(2.0),
]


def refused(replica: Replica) -> None:
    record = make_record(np.random.default_rng(0), replica.method, replica.position)
    uses = (replica.write, replica.digest, replica.walk, lambda: replica.replay([record]))
    for use in uses:
        with pytest.raises(ProtocolError):
            use()


@pytest.mark.parametrize("tamper", [*MODULE, *FULL_ONLY, *BUFFERS])
def test_what_others_have_changed_is_noticed(tamper):
    replica = make_replica(HiSo())
    replica.digest()
    tamper(replica)
    refused(replica)


@pytest.mark.parametrize("tamper", [*MODULE, *BUFFERS])
def test_and_with_lean_memory_too(tamper):
    replica = make_replica(HiSo(), memory="lean")
    tamper(replica)
    refused(replica)


def test_training_mode_is_refused_until_it_is_over():
    replica = make_replica(ZoSgd())
    replica.module.dropout.train()
    refused(replica)
    replica.module.eval()
    replica.write()


def test_a_replica_that_was_restored_or_is_new_goes_on():
    replica, record = make_replica(HiSo()), make_record(np.random.default_rng(0), HiSo(), 0)
    kept = {"weights": replica.weights.clone(), "h": replica.state["h"].clone()}
    replica.weights.zero_()
    refused(replica)
    replica.restore(kept, 0, b"", replica.hyper)
    fresh = make_replica(HiSo())
    for each in (replica, fresh):
        each.replay([record])
    assert replica.digest() == fresh.digest()


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replicas_own_work_is_not_taken_for_that_of_others(backend, memory, dtype):
    method = Momentum()
    replica = make_replica(method, backend, memory=memory, dtype=dtype)
    rng = np.random.default_rng(0)
    for r in range(3):
        replica.digest()
        replica.write()
        with torch.inference_mode():
            replica.module(torch.arange(12))
        walk = replica.walk()
        walk.step(round=r, step=0, stream=0, coefficients=np.ones(2, np.float32))
        replica.write(walk=walk)
        replica.replay([make_record(rng, method, r)])
    other = make_replica(method, backend)
    other.restore({"weights": replica.weights, **replica.state}, 3, replica.chain, replica.hyper)
    assert other.digest() == replica.digest()


@pytest.mark.parametrize("memory", ["full", "lean"])
def test_nor_are_passes_in_inference_mode(memory):
    """With lean memory a module's parameters are made in them, and count no writes then."""
    replica = make_replica(ZoSgd(), memory=memory)
    with torch.no_grad():
        replica.release()
        for parameter in replica.module.parameters():
            parameter.add_(1.0)
    replica = Replica(replica.module, identity_of(ZoSgd()), memory=memory)
    for _ in range(2):
        replica.write()
        with torch.inference_mode():
            replica.module(torch.arange(12))
    replica.digest()


def test_a_module_that_is_lent_may_be_trained_and_is_w_again():
    replica = make_replica(ZoSgd())
    expected = copy.deepcopy(replica.module.body.detach())
    with replica.lend():
        assert torch.equal(replica.module.body, expected)
        train_in_place(replica)
        assert not torch.equal(replica.module.body, expected)
    replica.write()
    assert torch.equal(replica.module.body, expected)
