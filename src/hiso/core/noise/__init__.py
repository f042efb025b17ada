"""The exact definition of a direction u. A golden digest in the tests fixes `NOISE_FORMAT`.

Philox4x32-10 turns (key, counter) into four 32-bit words. The key is the low and the high word
of the run's 64-bit seed. The counter is

    c0 = block        c1 = direction p | local step k << 16        c2 = stream        c3 = round r

Stream 0 holds the directions that all clients share; stream i + 1 holds those of client i. A
buffer is divided into tiles of `TILE` elements. The words of a tile's blocks are arranged so that
neighbours in memory come from neighbouring counters, which lets loops vectorise:

    binomial   2 numbers a word: element = tile·2048 + (2·word + half)·256 + j, block = tile·256 + j
    gaussian   1 number a word:  element = tile·2048 + word·512 + j,            block = tile·512 + j

`binomial`: each 16-bit half gives (popcount − 8) / 2: mean 0, variance exactly 1, 17 levels,
excess kurtosis −1/8, every value exact even in bfloat16. `gaussian`: the low 31 bits give a tail
probability q = (bits + ½)/2³², t = √(−2 ln q), |u| = polynomial(t), within 1e-5 of the normal
quantile; the top bit gives the sign. Every float32 operation is rounded separately (no FMA).
"""

from __future__ import annotations

from typing import Literal

Noise = Literal["binomial", "gaussian"]

NOISE_FORMAT = 1
TILE = 2048
BLOCKS_PER_TILE: dict[Noise, int] = {"binomial": 256, "gaussian": 512}

PHILOX_M = (0xD2511F53, 0xCD9E8D57)
PHILOX_W = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

SQRT_HALF_BITS = 0x3F3504F3
"""Bits of float32 √½; mantissas are reduced to [√½, √2)."""
LN2 = 0.6931471805599453
LN_POLYNOMIAL = (
    1.0,
    -0.5000037550926208,
    0.333345502614975,
    -0.2496878057718277,
    0.19915002584457397,
    -0.17281652987003326,
    0.16114167869091034,
    -0.09868785738945007,
)
"""ln(1 + m) / m on [√½ − 1, √2 − 1], ascending powers of m."""
QUANTILE_CENTRE = 3.970557928085327
QUANTILE_POLYNOMIAL = (
    3.368990898132324,
    1.0944303274154663,
    -0.017362486571073532,
    0.003331793239340186,
    -0.0006402090075425804,
    0.00017890507297124714,
    -5.065111326985061e-05,
    -2.7971123017778154e-06,
    2.497029754522373e-06,
    1.2327610647844267e-06,
    -3.7322325852073845e-07,
)
"""|u| in ascending powers of t − QUANTILE_CENTRE."""


def split_seed(seed: int) -> tuple[int, int]:
    """(low, high) word of a 64-bit seed.

    Raises:
        ValueError: The seed does not lie in [0, 2^64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed = {seed} must lie in [0, 2^64)")
    return seed & 0xFFFFFFFF, seed >> 32


def check_counter(round: int, step: int, stream: int, direction: int) -> None:
    """Checks that the coordinates of a direction fit the counter.

    Raises:
        ValueError: Round or stream exceeds 32 bits, or step or direction 16 bits.
    """
    for name, value, bits in (
        ("round", round, 32),
        ("step", step, 16),
        ("stream", stream, 32),
        ("direction", direction, 16),
    ):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} = {value} must lie in [0, 2^{bits})")


def pack_step(step: int, direction: int) -> int:
    """Counter word c1 of local step k and direction p."""
    return direction | step << 16
