"""Data sets as clients' shards, with batches drawn from hiso's seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, default_collate

from hiso.core.keys import batch_rows

Collate = Callable[[list[Any]], Any]
"""Makes a batch of a list of items."""


class DataShard:
    """A client's shard: a list, a map-style torch `Dataset`, or a Hugging Face data set.

    Any object with a length and items by index is accepted. Items must not be random: a batch must
    be the same every time it is drawn.

    Example:
        >>> shard = DataShard([1.0, 2.0, 3.0], client=0, batch_size=2, seed=0)
        >>> shard.examples, len(shard.batch(0, 0))
        (3, 2)

    Attributes:
        data: The data set, which is not copied.
        examples: Number of items.
    """

    def __init__(
        self,
        data: Any,
        *,
        client: int,
        batch_size: int,
        seed: int,
        collate: Collate = default_collate,
    ) -> None:
        """The shard of client `client`; its batches are a function of `seed`."""
        self.data, self.examples = data, len(data)
        self._client, self._seed, self._collate = client, seed, collate
        self._batch_size = batch_size

    def batch(self, round: int, step: int) -> Any:
        """The batch of local step `step` in round `round`: its items joined by `collate`.

        The batch has min(batch_size, examples) different items in ascending order of their indices,
        and is a pure function of (seed, client, round, step).
        """
        rows = batch_rows(
            self._seed, self._client, round, step, size=self.examples, batch_size=self._batch_size
        )
        at_once = getattr(self.data, "__getitems__", None)  # as torch's DataLoader does
        items = [self.data[row] for row in rows] if at_once is None else list(at_once(rows))
        return self._collate(items)


def shard_problem(data: Any) -> str | None:
    """Why something cannot be a shard, or None if it can."""
    kind = type(data).__name__
    if isinstance(data, DataLoader):
        return "is a DataLoader, which draws batches of its own: give its dataset"
    if isinstance(data, IterableDataset):
        return f"is a {kind}, which has no indices: give a map-style Dataset or a list"
    if isinstance(data, Mapping):
        return f"is a {kind} with the keys {', '.join(map(str, data))}: give one data set"
    if isinstance(data, tuple | str | bytes):
        return f"is a {kind}, as an example may be: give a list of examples, or a data set"
    if isinstance(data, Tensor):
        return "is a tensor: give a list of its rows, or a TensorDataset"
    try:
        size = len(data)
        if not hasattr(data, "__getitem__"):
            raise TypeError
    except (TypeError, NotImplementedError):
        return f"is a {kind}: it needs a length, and an item for each index below that"
    return None if size else "has no examples"
