"""Reference directions in NumPy, one operation at a time; tests compare the kernels with them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.core.noise import (
    BLOCKS_PER_TILE,
    LN2,
    LN_POLYNOMIAL,
    PHILOX_M,
    PHILOX_ROUNDS,
    PHILOX_W,
    QUANTILE_CENTRE,
    QUANTILE_POLYNOMIAL,
    SQRT_HALF_BITS,
    Noise,
    check_counter,
    pack_step,
    split_seed,
)

_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
Words = NDArray[np.uint64]
Values = NDArray[np.float32]


def philox(counter: tuple[Any, Any, Any, Any], key: tuple[int, int]) -> tuple[Words, ...]:
    """Philox4x32-10: four words, each in a uint64, for uint64 counters that broadcast."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    for number in range(PHILOX_ROUNDS):
        k0, k1 = (
            np.uint64((k + number * w) & 0xFFFFFFFF) for k, w in zip(key, PHILOX_W, strict=True)
        )
        p0 = c0 * np.uint64(PHILOX_M[0])
        p1 = c2 * np.uint64(PHILOX_M[1])
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _MASK, (p0 >> _32) ^ c3 ^ k1, p0 & _MASK
    return c0, c1, c2, c3


def _binomial(word: Words) -> list[Values]:
    halves = (word & np.uint64(0xFFFF), word >> np.uint64(16))
    return [
        (np.bitwise_count(half).astype(np.int32) - 8).astype(np.float32) * np.float32(0.5)
        for half in halves
    ]


def _horner(coefficients: tuple[float, ...], x: Values) -> Values:
    total = np.full_like(x, np.float32(coefficients[-1]))
    for coefficient in coefficients[-2::-1]:
        total = total * x + np.float32(coefficient)
    return total


def _gaussian(word: Words) -> list[Values]:
    q = (word & np.uint64(0x7FFFFFFF)).astype(np.int32).astype(np.float32) + np.float32(0.5)
    bits = q.view(np.int32) - np.int32(SQRT_HALF_BITS)
    exponent = (bits >> 23).astype(np.float32) - np.float32(32)
    mantissa = ((bits & np.int32(0x7FFFFF)) + np.int32(SQRT_HALF_BITS)).view(np.float32)
    m = mantissa - np.float32(1)
    ln = _horner(LN_POLYNOMIAL, m) * m + exponent * np.float32(LN2)
    t = np.sqrt(ln * np.float32(-2)) - np.float32(QUANTILE_CENTRE)
    z = _horner(QUANTILE_POLYNOMIAL, t)
    return [np.where(word >> np.uint64(31) == 1, -z, z)]


def direction(
    noise: Noise,
    seed: int,
    *,
    round: int,
    step: int,
    stream: int,
    direction: int,
    tiles: range,
) -> Values:
    """u on the tiles `tiles.start .. tiles.stop - 1`, float32 [len(tiles) · 2048].

    Raises:
        ValueError: A coordinate does not fit the counter, or the seed exceeds 64 bits.
    """
    check_counter(round, step, stream, direction)
    per_tile = BLOCKS_PER_TILE[noise]
    block = np.arange(tiles.start * per_tile, tiles.stop * per_tile, dtype=np.uint64)
    c1 = pack_step(step, direction)
    words = philox((block, np.uint64(c1), np.uint64(stream), np.uint64(round)), split_seed(seed))
    values = _binomial if noise == "binomial" else _gaussian
    parts = [part.reshape(len(tiles), per_tile) for word in words for part in values(word)]
    return np.concatenate(parts, axis=1).reshape(-1)
