"""Every kind of data set gives the same batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Subset, TensorDataset

from hiso.core.keys import choose
from hiso.data.shards import DataShard, shard_problem

SIZE = 23
X = torch.arange(SIZE * 2, dtype=torch.float32).view(SIZE, 2)
Y = torch.arange(SIZE) % 3


class Items(torch.utils.data.Dataset):
    """A map-style data set of one's own, which gives one item at a time."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(index, int)
        return X[index], Y[index]


KINDS: dict[str, Any] = {
    "list": [(x, y) for x, y in zip(X, Y, strict=True)],
    "TensorDataset": TensorDataset(X, Y),
    "Subset": Subset(TensorDataset(X.repeat(2, 1), Y.repeat(2)), range(SIZE)),
    "own": Items(),
    "Hugging Face": Dataset.from_dict({"x": X.tolist(), "y": Y.tolist()}).with_format("torch"),
    "dicts": [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_shard_gives_the_same_batches(kind):
    shard = DataShard(KINDS[kind], client=2, batch_size=5, seed=7)
    assert shard.examples == SIZE
    for round, step in [(0, 0), (0, 1), (3, 0)]:
        rows = choose(7, "batch", 2, round, step, size=SIZE, count=5)
        batch = shard.batch(round, step)
        x, y = batch.values() if isinstance(batch, dict) else batch
        assert torch.equal(x, X[rows])
        assert torch.equal(y, Y[rows])


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**64 - 1),
    where=st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 9)),
)
def test_a_batch_is_of_different_items_and_depends_on_its_coordinates_alone(
    size, batch_size, seed, where
):
    client, round, step = where
    made = [
        DataShard(list(range(size)), client=client, batch_size=batch_size, seed=seed, collate=list)
        for _ in range(2)
    ]
    first, again = (shard.batch(round, step) for shard in made)
    assert first == again == sorted(set(first))
    assert len(first) == min(batch_size, size)
    assert made[0].batch(round, step) == first


def test_batches_are_collated_as_one_likes():
    words = ["a", "bcd", "ef"]
    shard = DataShard(words, client=0, batch_size=3, seed=0, collate=lambda items: "".join(items))
    assert shard.batch(0, 0) == "abcdef"
    assert DataShard(words, client=0, batch_size=3, seed=0).batch(0, 0) == words


@pytest.mark.parametrize("kind", KINDS)
def test_data_sets_are_shards(kind):
    assert shard_problem(KINDS[kind]) is None
    assert shard_problem(np.ones((3, 2))) is None
