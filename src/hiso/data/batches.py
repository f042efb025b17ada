"""The batches that clients draw from their shards of encoded examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from hiso.core.keys import batch_rows
from hiso.errors import SettingsError

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Batch(Generic[E]):
    """The examples on which one client measures its loss in one local step."""

    client: int
    examples: tuple[E, ...]


class Shard(Generic[E]):
    """The encoded examples of one client. The shard refers to them and copies nothing.

    Attributes:
        client: Number of the client.
        encoded: Its examples.
        batch_size: Examples in a batch; if the shard is smaller, the batch is the whole shard.
    """

    def __init__(self, client: int, encoded: Sequence[E], batch_size: int, seed: int) -> None:
        """A shard that draws its batches from `seed`.

        Raises:
            SettingsError: `batch_size` is not positive, or there are no examples.
        """
        if batch_size < 1:
            raise SettingsError(f"batch_size is {batch_size}: it must be 1 or more.")
        if not encoded:
            raise SettingsError(f"client {client} has no examples: use fewer clients.")
        self.client, self.encoded, self.batch_size = client, encoded, batch_size
        self._seed = seed

    def keyed(self, seed: int) -> Shard[E]:
        """The same examples, with batches drawn from another seed."""
        return Shard(self.client, self.encoded, self.batch_size, seed)

    @property
    def examples(self) -> int:
        """Number of examples."""
        return len(self.encoded)

    def batch(self, round: int, step: int) -> Batch[E]:
        """The batch of local step `step` in round `round`.

        It holds min(batch_size, examples) different examples and is a pure function of the seed,
        the client, the round and the step.
        """
        rows = batch_rows(
            self._seed, self.client, round, step, size=self.examples, batch_size=self.batch_size
        )
        return Batch(self.client, tuple(self.encoded[row] for row in rows))
