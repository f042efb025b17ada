"""When losses and scalars say that a run goes wrong, and when they only look like it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hiso.core.keys import choose
from hiso.core.record import Record
from hiso.data.batches import Shard
from hiso.data.partition import partition
from hiso.ring.accept.divergence import (
    GUARD_ROUNDS,
    STUCK_ROUNDS,
    excess,
    last_good,
    median_loss,
    stuck,
)


def first_excess(losses: list[float], factor: float = 3.0) -> int | None:
    """The round that the guard would stop, as a server asks it."""
    for r, _ in enumerate(losses):
        last = losses[max(0, r - GUARD_ROUNDS + 1) : r + 1]
        if excess(losses[:r][:GUARD_ROUNDS], last, factor):
            return r
    return None


def skewed_losses(seed: int, p: float, alpha: float) -> list[float]:
    """Batch losses of a model that says P(1) = p, whatever it is shown, and never moves."""
    labels = np.random.default_rng(0).integers(0, 2, 2000)
    examples = [SimpleNamespace(label=int(label), group=None) for label in labels]
    parts = partition(examples, 6, "dirichlet", alpha=alpha, column=None, seed=seed)
    shards = [Shard(i, [int(labels[j]) for j in part], 16, seed) for i, part in enumerate(parts)]
    losses = []
    for r in range(200):
        asked = choose(seed, "sample", r, 0, size=6, count=2)
        batches = [shards[client].batch(r, 0).examples for client in asked]
        each = [np.mean([-np.log(p if y else 1 - p) for y in batch]) for batch in batches]
        losses.append(float(np.mean(each)))
    return losses


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("p", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_model_that_never_moves_is_not_stopped(p, alpha):
    for seed in range(10):
        assert first_excess(skewed_losses(seed, p, alpha)) is None


def test_a_loss_that_explodes_is_stopped_within_half_a_window():
    normal = [0.7] * 30
    assert first_excess(normal + [50.0] * 20) == 30 + GUARD_ROUNDS // 2
    assert first_excess([*normal, 50.0, *normal]) is None
    assert first_excess(normal + [2.0] * 20) is None
    assert first_excess(normal + [50.0] * 20, factor=100.0) is None


def test_few_rounds_need_more():
    """The factor is squared until the first rounds are complete."""
    assert excess([0.7] * (GUARD_ROUNDS - 1), [5.0] * GUARD_ROUNDS, 3.0) is None
    assert excess([0.7] * GUARD_ROUNDS, [5.0] * GUARD_ROUNDS, 3.0)
    assert excess([0.7], [0.7, 20.0], 3.0)
    assert excess([], [1e30], 3.0) is None
    assert excess([0.7], [1e30], None) is None


def test_a_loss_below_zero_is_compared_by_its_size():
    """A negative log-likelihood of densities, for one, starts anywhere."""
    assert excess([-2.0] * GUARD_ROUNDS, [-1.0] * GUARD_ROUNDS, 3.0) is None
    assert excess([-2.0] * GUARD_ROUNDS, [7.0] * GUARD_ROUNDS, 3.0)


def record(round: int, coefficient: float) -> Record:
    zeros = np.zeros(1, np.uint16)
    return Record(round, zeros, zeros.astype(np.uint32), zeros, np.array([coefficient], np.float32))


def test_stuck_is_where_nothing_changes_a_loss_that_is_no_good_one():
    zeros = [record(r, 0.0) for r in range(STUCK_ROUNDS)]
    assert stuck([2.3], zeros, 2.3)
    assert stuck([2.3], zeros, 0.69)
    assert stuck([2.3], zeros, 1e-7) is None  # it has learned all there is
    assert stuck([2.3], zeros, 0.0) is None
    assert stuck([2.3], zeros[1:], 2.3) is None
    assert stuck([2.3], [*zeros[1:], record(5, 0.1)], 2.3) is None
    assert stuck([], zeros, None)  # nobody reports a loss
    assert stuck([], [*zeros[1:], record(5, 0.1)], None) is None


def test_a_median_loss_needs_more_than_half_of_the_replies():
    assert median_loss([1.0, None, 3.0]) == 2.0
    assert median_loss([1.0, None]) is None
    assert median_loss([None]) is None
    assert median_loss([]) is None


def test_the_last_good_round_moved_and_began_with_a_normal_loss():
    moving = [record(r, 0.1) for r in range(5)]
    assert last_good(moving, [1.0, 0.9, 1.9, 8.0, 9.0]) == 2
    assert last_good([*moving[:2], *(record(r, 0.0) for r in range(2, 5))], [1.0] * 5) == 1
    assert last_good(moving, [1.0, 3.0, 3.0, 3.0, 3.0]) == 0
    assert last_good(moving, [1.0, None, None, 1.0, None]) == 3
    assert last_good(moving, [None] * 5) is None  # a client's copy of the log
    assert last_good([], []) is None
