"""The position of each parameter in the flat buffer: every parameter starts at a tile boundary."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hiso.core.noise import TILE


@dataclass(frozen=True)
class Entry:
    """One parameter: its name, shape, and offset in elements (a multiple of `TILE`)."""

    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def tiles(self) -> range:
        """The tiles that hold the parameter."""
        return range(self.offset // TILE, (self.offset + self.numel + TILE - 1) // TILE)


@dataclass(frozen=True)
class Layout:
    """The entries of a flat buffer, in order. Padding up to the next tile belongs to no
    parameter.
    """

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> Layout:
        """Places parameters in the given order.

        Raises:
            ValueError: There are no parameters, or too many weights for 32-bit block counters.
        """
        entries: list[Entry] = []
        tile = 0
        for name, shape in shapes:
            entry = Entry(name, tuple(shape), tile * TILE)
            tile = max(entry.tiles.stop, tile)
            entries.append(entry)
        if tile == 0:
            raise ValueError("the trainable parameters hold no weight: all are of size zero")
        if tile * 512 > 2**32:
            raise ValueError(f"{tile * TILE:,} weights exceed the noise format's 2^34")
        return cls(tuple(entries))

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.entries[-1].tiles.stop

    @property
    def numel(self) -> int:
        """Number of weights d, without padding."""
        return sum(entry.numel for entry in self.entries)

    @cached_property
    def valid(self) -> NDArray[np.int64]:
        """The number of weights in each tile, int64 [tiles]."""
        valid = np.full(self.tiles, TILE, np.int64)
        for entry in self.entries:
            if entry.numel % TILE:
                valid[entry.tiles.stop - 1] = entry.numel % TILE
        return valid


def runs(numbers: Sequence[int]) -> list[range]:
    """Ascending numbers as ranges of consecutive numbers."""
    found: list[range] = []
    for number in numbers:
        if found and number == found[-1].stop:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found
