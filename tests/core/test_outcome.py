"""Outcomes by example, from whatever a loss function returns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hiso.core.measure.outcome import Outcome
from hiso.errors import SettingsError

finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, st.integers(1, 500)), min_size=1, max_size=30))
def test_the_mean_is_the_exact_one_rounded_once(rows):
    losses, weights = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    outcome = Outcome(losses, weights)
    assert outcome.mean == math.fsum(losses) / sum(w for _, w in rows)
    order = np.argsort(losses)
    assert Outcome(losses[order], weights[order]).mean == outcome.mean


@pytest.mark.parametrize("value", [1.5, np.float32(1.5), torch.tensor(1.5), 1, [1.0, 2.0]])
def test_a_mean_or_losses_are_taken(value):
    outcome = Outcome.of(value)
    assert outcome.mean == pytest.approx(np.mean(np.asarray(value, np.float64)))
    assert outcome.scores is outcome.labels is None
    assert outcome.losses.dtype == outcome.weights.dtype == np.float64
    assert Outcome.of(outcome) is outcome


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_scores_give_cross_entropies(dtype, classes):
    generator = torch.Generator().manual_seed(0)
    scores = (torch.randn(7, classes, generator=generator) * 3).to(dtype).requires_grad_()
    labels = torch.randint(classes, (7,), generator=generator)
    outcome = Outcome.of((scores, labels))
    at = scores.detach().float().double()
    expected = at.logsumexp(1) - at[torch.arange(7), labels]
    assert outcome.losses == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-6)
    assert outcome.scores is not None
    assert outcome.labels is not None
    assert (outcome.scores.dtype, outcome.scores.shape) == (np.float32, (7, classes))
    assert np.array_equal(outcome.labels, labels.numpy())
    assert np.array_equal(outcome.predictions, scores.detach().float().argmax(1).numpy())
    parts = outcome.split([2, 4, 1])
    assert [len(part.losses) for part in parts] == [2, 4, 1]
    assert np.array_equal(np.concatenate([part.scores for part in parts]), outcome.scores)
    assert np.array_equal(np.concatenate([part.predictions for part in parts]), outcome.predictions)


def test_tokens_go_with_their_examples():
    counts, tokens = np.array([2, 1, 3, 1]), np.arange(7.0)
    sums = np.array([part.sum() for part in np.split(tokens, [2, 3, 6])])
    first, second = Outcome(sums, counts.astype(np.float64), tokens=tokens).split([1, 3])
    assert first.tokens is not None
    assert second.tokens is not None
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([0, 1], [2, 3, 4, 5, 6])
    assert second.mean == np.mean([2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    "value",
    [
        "loss", None, {}, [], np.zeros((2, 2)), torch.zeros(3, 2),
        (np.zeros((2, 2)), [0]), (np.zeros(2), [0, 1]), (np.zeros((2, 2)), [0, 2]),
        (np.zeros((2, 2)), [0, -1]), (np.zeros((0, 2)), []),
    ],
)  # fmt: skip
def test_what_is_no_outcome_is_refused(value):
    with pytest.raises(SettingsError):
        Outcome.of(value)


def test_without_scores_there_are_no_predictions():
    with pytest.raises(SettingsError):
        Outcome.of(1.0).predictions  # noqa: B018
