"""Batches, sampling and splits are drawn from keys whose values are pinned."""

from __future__ import annotations

import numpy as np
import pytest

from hiso.core.keys import choose, permutation, raw_bits


def test_keys_are_pinned():
    """A change here gives every run other batches and other clients: it breaks resuming."""
    assert [hex(word) for word in raw_bits(7, "batch", (1, 2, 3), 2)] == [
        "0x51769c0bb68cdbc6",
        "0x887edf71f793ea65",
    ]
    assert permutation(0, "split", size=8).tolist() == [7, 6, 3, 0, 4, 1, 5, 2]
    assert choose(3, "sample", 5, 0, size=10, count=4) == [0, 2, 3, 4]


def test_parts_of_a_key_are_all_used():
    draws = [
        raw_bits(1, "a", (2, 3), 4),
        raw_bits(2, "a", (2, 3), 4),
        raw_bits(1, "b", (2, 3), 4),
        raw_bits(1, "a", (23,), 4),
        raw_bits(1, "a", (3, 2), 4),
    ]
    assert len({draw.tobytes() for draw in draws}) == len(draws)
    with pytest.raises(ValueError, match="slash"):
        raw_bits(1, "a/b", (), 1)


def test_choices_are_uniform():
    counts = np.zeros(6)
    for number in range(3000):
        counts[choose(0, "test", number, size=6, count=2)] += 1
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(3000 * 2 / 6 * 4 / 6)
    with pytest.raises(ValueError, match="choose 7 of 6"):
        choose(0, "test", size=6, count=7)
