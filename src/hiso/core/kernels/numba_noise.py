"""Directions as numba functions, accumulated in registers and a tile-sized scratch buffer.

Philox runs in 64-bit lanes, whose upper halves may hold arbitrary bits between rounds. Only the
inputs of the multiplications are masked; LLVM turns these into 32×32→64 multiplications of whole
vectors. numba widens 32-bit integer arithmetic, so the 32-bit steps are LLVM intrinsics.
"""
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from math import sqrt

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from hiso.core.noise import (
    BLOCKS_PER_TILE,
    LN2,
    LN_POLYNOMIAL,
    PHILOX_M,
    PHILOX_W,
    QUANTILE_CENTRE,
    QUANTILE_POLYNOMIAL,
    SQRT_HALF_BITS,
)

f32, u32, u64 = np.float32, np.uint32, np.uint64
_M0, _M1, _W0, _W1 = map(u64, (*PHILOX_M, *PHILOX_W))
_MASK, _32 = u64(0xFFFFFFFF), u64(32)
_B, _G = BLOCKS_PER_TILE["binomial"], BLOCKS_PER_TILE["gaussian"]
_HALF, _ONE, _MINUS_TWO = f32(0.5), f32(1), f32(-2)
_LN2, _CENTRE = f32(LN2), f32(QUANTILE_CENTRE)
_SQRT_HALF = u32(SQRT_HALF_BITS)
_L0, _L1, _L2, _L3, _L4, _L5, _L6, _L7 = map(f32, LN_POLYNOMIAL)
_Z0, _Z1, _Z2, _Z3, _Z4, _Z5, _Z6, _Z7, _Z8, _Z9, _Z10 = map(f32, QUANTILE_POLYNOMIAL)
_8, _9, _16, _23, _31 = map(u32, (8, 9, 16, 23, 31))


def _instruction(result, arguments, build):
    """A numba function with the LLVM instructions that `build(builder, *args)` emits."""
    signature = result(*arguments)

    def generate(_context, builder, _signature, values):
        return build(builder, *values)

    def unary(_typing, _a):
        return signature, generate

    def binary(_typing, _a, _b):
        return signature, generate

    return intrinsic(unary if len(arguments) == 1 else binary)


@intrinsic
def wide_vectors(_typing):
    """Lets LLVM use 512-bit vectors in the calling function; on some CPUs it avoids them."""

    def generate(_context, builder, _signature, _values):
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')

    return types.void(), generate


_I32, _F32 = ir.IntType(32), ir.FloatType()
_u, _f = types.uint32, types.float32
sub32 = _instruction(_u, (_u, _u), lambda b, x, y: b.sub(x, y))
add32 = _instruction(_u, (_u, _u), lambda b, x, y: b.add(x, y))
and32 = _instruction(_u, (_u, _u), lambda b, x, y: b.and_(x, y))
xor32 = _instruction(_u, (_u, _u), lambda b, x, y: b.xor(x, y))
shr32 = _instruction(_u, (_u, _u), lambda b, x, y: b.lshr(x, y))
sar32 = _instruction(_u, (_u, _u), lambda b, x, y: b.ashr(x, y))
count32 = _instruction(_u, (_u,), lambda b, x: b.ctpop(x))
to_float = _instruction(_f, (_u,), lambda b, x: b.sitofp(x, _F32))
float_bits = _instruction(_u, (_f,), lambda b, x: b.bitcast(x, _I32))
bits_float = _instruction(_f, (_u,), lambda b, x: b.bitcast(x, _F32))


@njit(inline="always")
def bfloat_bits(x):
    """bfloat16 bits of a float32, rounded to nearest even; any NaN becomes 0x7fc0."""
    bits = float_bits(x)
    rounded = add32(bits, add32(u32(0x7FFF), and32(shr32(bits, _16), u32(1))))
    return np.uint16(shr32(rounded, _16) if x == x else u32(0x7FC0))


@njit(inline="always")
def half_bits(x):
    """float16 bits of a float32, rounded to nearest even; any NaN becomes 0x7e00.

    Uses integer operations, so that no processor feature is needed. For normal results the
    exponent is rebiased, and 13 bits are rounded off. Subnormal results are multiples of 2^-24;
    adding 0.5 in float32, whose last place is then 2^-24, rounds to them.
    """
    bits = float_bits(x)
    size = and32(bits, u32(0x7FFFFFFF))
    even = and32(shr32(size, u32(13)), u32(1))
    normal = shr32(add32(sub32(size, u32(0x38000000)), add32(u32(0xFFF), even)), u32(13))
    small = sub32(float_bits(bits_float(size) + _HALF), u32(0x3F000000))
    half = small if size < u32(0x38800000) else normal
    half = half if size < u32(0x477FF000) else u32(0x7C00)
    half = half if size <= u32(0x7F800000) else u32(0x7E00)
    return np.uint16(add32(half, shr32(and32(bits, u32(0x80000000)), _16)))


@njit(inline="always")
def _low(word):
    return to_float(sub32(count32(and32(word, u32(0xFFFF))), _8)) * _HALF


@njit(inline="always")
def _high(word):
    return to_float(sub32(count32(shr32(word, _16)), _8)) * _HALF


@njit(inline="always")
def _normal(word):
    q = to_float(and32(word, u32(0x7FFFFFFF))) + _HALF
    bits = sub32(float_bits(q), _SQRT_HALF)
    exponent = to_float(sar32(bits, _23)) - f32(32)
    m = bits_float(add32(and32(bits, u32(0x7FFFFF)), _SQRT_HALF)) - _ONE
    ln = _L6 + m * _L7
    ln = _L3 + m * (_L4 + m * (_L5 + m * ln))
    ln = _L0 + m * (_L1 + m * (_L2 + m * ln))
    t = sqrt((ln * m + exponent * _LN2) * _MINUS_TWO) - _CENTRE
    z = _Z6 + t * (_Z7 + t * (_Z8 + t * (_Z9 + t * _Z10)))
    z = _Z0 + t * (_Z1 + t * (_Z2 + t * (_Z3 + t * (_Z4 + t * (_Z5 + t * z)))))
    return bits_float(xor32(float_bits(z), and32(word, u32(0x80000000))))


@njit(inline="always")
def _round(c0, c1, c2, c3, k0, k1):
    p0 = _M0 * (c0 & _MASK)
    p1 = _M1 * (c2 & _MASK)
    return (p1 >> _32) ^ c1 ^ k0, p1, (p0 >> _32) ^ c3 ^ k1, p0


@njit(inline="always")
def _words(c0, c1, c2, c3, k0, k1):
    """Ten Philox rounds; k0 and k1 are the sequences of round keys, 64-bit."""
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[0], k1[0])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[1], k1[1])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[2], k1[2])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[3], k1[3])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[4], k1[4])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[5], k1[5])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[6], k1[6])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[7], k1[7])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[8], k1[8])
    c0, c1, c2, c3 = _round(c0, c1, c2, c3, k0[9], k1[9])
    return u32(c0), u32(c1), u32(c2), u32(c3)


@njit(inline="always")
def _schedule(k, w):
    return (
        k & _MASK,
        (k + u64(1) * w) & _MASK,
        (k + u64(2) * w) & _MASK,
        (k + u64(3) * w) & _MASK,
        (k + u64(4) * w) & _MASK,
        (k + u64(5) * w) & _MASK,
        (k + u64(6) * w) & _MASK,
        (k + u64(7) * w) & _MASK,
        (k + u64(8) * w) & _MASK,
        (k + u64(9) * w) & _MASK,
    )


@njit(inline="always")
def binomial(s1, c, tile, c1, stream, round, low, high):
    """s1 += c·u on one tile."""
    k0, k1 = _schedule(low, _W0), _schedule(high, _W1)
    for j in range(_B):
        a, b, d, e = _words(tile * u64(_B) + u64(j), c1, stream, round, k0, k1)
        s1[0 * _B + j] += c * _low(a)
        s1[1 * _B + j] += c * _high(a)
        s1[2 * _B + j] += c * _low(b)
        s1[3 * _B + j] += c * _high(b)
        s1[4 * _B + j] += c * _low(d)
        s1[5 * _B + j] += c * _high(d)
        s1[6 * _B + j] += c * _low(e)
        s1[7 * _B + j] += c * _high(e)


@njit(inline="always")
def gaussian(s1, c, tile, c1, stream, round, low, high):
    """s1 += c·u on one tile."""
    k0, k1 = _schedule(low, _W0), _schedule(high, _W1)
    for j in range(_G):
        a, b, d, e = _words(tile * u64(_G) + u64(j), c1, stream, round, k0, k1)
        s1[0 * _G + j] += c * _normal(a)
        s1[1 * _G + j] += c * _normal(b)
        s1[2 * _G + j] += c * _normal(d)
        s1[3 * _G + j] += c * _normal(e)


DIRECTIONS = {"binomial": binomial, "gaussian": gaussian}
