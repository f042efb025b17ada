"""The Triton kernels against numba's: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from hiso.core.method.registry import HiSo, HiZoo, Momentum, ZoSgd
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica

from ..identities import identity_of
from .conftest import TinyNet, make_replica
from .test_methods import CASES, IDS, Lion, history

pytest.importorskip("triton", reason="Triton has no wheel for this platform")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def triton_replica(method, **arguments) -> Replica:
    memory = arguments.pop("memory", "full")
    identity = identity_of(method, **{"seed": 2**63 + 12345, **arguments})
    return Replica(TinyNet().to(DEVICE), identity, backend="triton", memory=memory)


@pytest.mark.parametrize("noise", ["binomial", "gaussian"])
@pytest.mark.parametrize("method", [*CASES, Lion(decay=0.1)], ids=[*IDS, "lion"])
def test_replay_gives_the_bits_of_numba(method, noise):
    records = history(method, 3, 2, rounds=3)
    ours, theirs = triton_replica(method, noise=noise), make_replica(method, noise=noise)
    assert ours.digest() == theirs.digest()
    for replica in (ours, theirs):
        replica.replay(records)
    assert ours.digest() == theirs.digest()
    assert torch.equal(ours.weights.cpu(), theirs.weights)
    for name, buffer in ours.state.items():
        assert torch.equal(buffer.cpu(), theirs.state[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [ZoSgd(), HiSo(), Momentum(), HiZoo()], ids=lambda m: m.name)
def test_perturbations_give_the_bits_of_numba(method, dtype):
    written = []
    for replica in (triton_replica(method, dtype=dtype), make_replica(method, dtype=dtype)):
        replica.replay(history(method, 2, 1, rounds=2))
        replica.write(Point(9, 1, 3, 2, -1), mu=1e-2)
        rows = replica.rows(replica.module.embed, torch.tensor([1, 60]).to(replica.weights.device))
        written.append((replica.module.embed.detach().cpu(), rows.cpu()))
    assert torch.equal(written[0][0], written[1][0])
    assert torch.equal(written[0][1], written[1][1])


def test_a_walk_gives_the_bits_of_numba():
    moved = []
    for replica in (triton_replica(Momentum(lr=0.1)), make_replica(Momentum(lr=0.1))):
        replica.replay(history(replica.method, 2, 1, rounds=2))
        walk = replica.walk()
        walk.step(round=2, step=1, stream=4, coefficients=np.array([0.5, -2.0], np.float32))
        moved.append(walk.weights.cpu())
    assert torch.equal(*moved)


def test_without_a_gpu_or_the_interpreter_it_is_refused():
    code = (
        "import torch; from hiso import Identity, Replica, ZoSgd\n"
        "Replica(torch.nn.Linear(2, 2), Identity(method=ZoSgd(), seed=0), backend='triton')"
    )
    env = {"PATH": "", "HOME": "/tmp"}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "backend triton does not run on cpu" in run.stderr
