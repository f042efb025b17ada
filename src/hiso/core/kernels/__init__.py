"""The three kernels, each one pass over memory, and the backends that implement them.

`perturb` writes w + (mu·u)/denom in one pass. `fold` applies any number of local steps of any
number of rounds in one pass, and computes the digest of the result. All backends give the same
bits for these two. `project` gives ⟨v, u_p/denom⟩ along any number of directions, in one pass over
v. Its results are one client's measurements; on one backend they do not depend on the number of
threads.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.method.base import Method
from hiso.core.noise import BLOCKS_PER_TILE, Noise, split_seed
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.record import Record

CPU = torch.device("cpu")
Backend = Literal["auto", "numba", "triton", "reference"]

DIGEST_STRIDE = 0x9E3779B97F4A7C15
DIGEST_MULTIPLIER = 0xD6E8FEB86659FD93
"""Digest: Σ mix(bits(x) + stride·(index + array·2^40)) mod 2^64 over all weights and states, where
mix(x) = three times `x ^= x >> 32`, with `x *= multiplier` in between. `array` is 0 for w, then
counts the states; `index` is the position in the flat buffer."""
DIGEST_ARRAY = 1 << 40

PROJECT_TILES = 32
"""Tiles that one partial sum of `project` covers."""


@dataclass(frozen=True, eq=False)
class Steps:
    """Local steps of one or more rounds, flattened for a kernel: S steps, N terms, H hypers."""

    round: NDArray[np.uint64]
    """[S]"""
    first: NDArray[np.bool_]
    """[S]: whether a round starts at this step, so that the denominator is computed again."""
    feeds: NDArray[np.bool_]
    """[S]: whether `learn` is called for this step."""
    start: NDArray[np.int64]
    """[S + 1]: terms of step s are start[s] .. start[s + 1] - 1."""
    counter: NDArray[np.uint64]
    """[N]: counter word c1."""
    stream: NDArray[np.uint64]
    """[N]"""
    coefficient: NDArray[np.float32]
    """[N]"""
    curvature: NDArray[np.float32]
    """[N], zeros for methods without curvature."""
    hyper: NDArray[np.float32]
    """[S, H], columns in the order of `method.hyper`."""


def pack(
    method: Method, records: Sequence[Record], hyper: Mapping[str, float]
) -> tuple[Steps, dict[str, float]]:
    """Flattens records, starting with hyper-parameters `hyper`; also returns the last ones."""
    rounds: list[int] = []
    first: list[bool] = []
    feeds: list[bool] = []
    hypers: list[list[float]] = []
    counts: list[NDArray[np.int64]] = []
    now = dict(hyper)
    for record in records:
        now.update(record.changes)
        steps = record.steps
        rounds += [record.round] * steps
        first += [k == 0 for k in range(steps)]
        feeds += [method.feeds(k, steps) for k in range(steps)]
        hypers += [[now[name] for name in method.hyper]] * steps
        counts.append(np.bincount(record.step, minlength=steps))
    zeros = np.zeros(0, np.float32)
    return Steps(
        round=np.array(rounds, np.uint64),
        first=np.array(first, np.bool_),
        feeds=np.array(feeds, np.bool_),
        start=np.concatenate([[0], *counts]).cumsum().astype(np.int64),
        counter=_join([r.direction + r.step.astype(np.uint64) * 2**16 for r in records], "u8"),
        stream=_join([r.stream for r in records], "u8"),
        coefficient=_join([zeros, *(r.coefficient for r in records)], "f4"),
        curvature=_join(
            [np.zeros_like(r.coefficient) if r.curvature is None else r.curvature for r in records],
            "f4",
        ),
        hyper=np.array(hypers, np.float32).reshape(len(rounds), len(now)),
    ), now


def _join(parts: Sequence[NDArray[Any]], dtype: str) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)


def sum_parts(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of the columns of partial sums [parts, P], each rounded once: float64 [P]."""
    return np.array([_exact_sum(column) for column in parts.T.tolist()])


def _exact_sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # out of the range of float64, or infinities of both signs
        return math.nan


class Kernels(Protocol):
    """A backend for one method, noise, seed and layout. Buffers are flat, padded, contiguous."""

    name: str

    def perturb(
        self,
        out: Tensor,
        w: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        point: Point,
        mu: float,
        tiles: range,
    ) -> None:
        """out ← cast(w + (mu·u)/denom) on `tiles`; `out` holds only these tiles, in its own dtype.

        u is the direction of `point`; the sign of `point` is ignored, but `mu` may be negative.
        """
        ...

    def fold(self, w: Tensor, state: Mapping[str, Tensor], steps: Steps) -> int:
        """Applies `steps` to w and state in place; returns the digest of the result."""
        ...

    def project(
        self,
        v: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        points: Sequence[Point],
        tiles: range,
    ) -> NDArray[np.float64]:
        """Σ_j v_j · u_pj/denom_j over the weights on `tiles`, for each point p: float64 [P].

        `v` is float32 and holds the weights of these tiles (one entry of the layout), without
        padding after the last weight. Products and sums are float64, with one partial sum for
        every `PROJECT_TILES` tiles.
        """
        ...


def load_kernels(
    backend: Backend,
    method: Method,
    noise: Noise,
    seed: int,
    layout: Layout,
    device: torch.device = CPU,
) -> Kernels:
    """The kernels of a backend; `auto` is numba on a CPU and Triton on a GPU.

    Raises:
        ValueError: There is no such backend or noise, the seed exceeds 64 bits, or the backend
            does not run on the device.
    """
    if backend not in get_args(Backend) or noise not in BLOCKS_PER_TILE:
        raise ValueError(
            f"backend {backend!r} must be one of {', '.join(get_args(Backend))}, and "
            f"noise {noise!r} one of {', '.join(BLOCKS_PER_TILE)}"
        )
    split_seed(seed)
    if backend == "auto":
        backend = "numba" if device.type == "cpu" else "triton"
    if device.type != ("cpu" if backend != "triton" or _interpreted() else "cuda"):
        raise ValueError(f"backend {backend} does not run on {device}")
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            raise ValueError("kernels for a GPU need the package triton: pip install triton")
        from hiso.core.kernels.triton_backend import TritonKernels

        return TritonKernels(method, noise, seed, layout)
    if backend == "reference":
        from hiso.core.kernels.reference import ReferenceKernels

        return ReferenceKernels(method, noise, seed, layout)
    from hiso.core.kernels.numba_backend import NumbaKernels

    return NumbaKernels(method, noise, seed, layout)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
