"""The CPU backend: compiled kernels, with as many threads as torch uses."""
# pyright: basic

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.kernels import PROJECT_TILES, Steps, sum_parts
from hiso.core.kernels.numba_source import load
from hiso.core.method.base import Method
from hiso.core.noise import TILE, Noise, pack_step, split_seed
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point

_SERIAL_TILES = 32
_TINY = np.float32(1e-40)
_CHUNKS_PER_THREAD = 8


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="hiso-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _over_tiles(
    task: Callable[[int, int], int | None], tiles: range, serial: int = _SERIAL_TILES
) -> int:
    """Runs `task` on parts of `tiles` in threads; returns the sum of its results modulo 2^64.

    Up to `serial` tiles are run without threads, because starting threads would take longer.

    Threads inherit the processor's floating-point mode from the thread that creates the pool.

    Raises:
        RuntimeError: This thread flushes subnormal numbers to zero, which changes bits.
    """
    if not _TINY * np.float32(0.5):
        raise RuntimeError(
            "subnormal numbers are flushed to zero in this thread, so replicas would differ from "
            "others': call torch.set_flush_denormal(False), and look for a library that was built "
            "with -ffast-math"
        )
    threads = torch.get_num_threads()
    if threads == 1 or len(tiles) <= serial:
        return int(task(tiles.start, tiles.stop) or 0)
    size = max(1, serial // 2, -(-len(tiles) // (threads * _CHUNKS_PER_THREAD)))
    starts = range(tiles.start, tiles.stop, size)
    jobs = [_pool(threads).submit(task, at, min(at + size, tiles.stop)) for at in starts]
    try:
        return sum(int(job.result() or 0) for job in jobs) % 2**64
    finally:
        wait(jobs)


def _bits(out: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    if out.dtype == torch.float32:
        return out.numpy()
    return out.view(torch.int16).numpy().view(np.uint16)


class NumbaKernels:
    """Each kernel makes one pass over memory; directions stay in the first-level cache."""

    name = "numba"

    def __init__(self, method: Method, noise: Noise, seed: int, layout: Layout) -> None:
        self.method, self.layout = method, layout
        self._key = tuple(map(np.uint64, split_seed(seed)))
        self._module = load(method, noise)

    def _buffers(self, w: Tensor, state: Mapping[str, Tensor]) -> list[NDArray[np.float32]]:
        return [w.numpy(), *(state[name].numpy() for name in self.method.state)]

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
        """See `Kernels.perturb`."""
        kernel = getattr(self._module, f"perturb_{str(out.dtype).removeprefix('torch.')}")
        arguments = (
            _bits(out),
            *self._buffers(w, state),
            np.array([hyper[name] for name in self.method.hyper], np.float32),
            self.layout.valid,
            np.float32(mu),
            np.uint64(pack_step(point.step, point.direction)),
            np.uint64(point.stream),
            np.uint64(point.round),
            *self._key,
            tiles.start * TILE,
        )
        _over_tiles(lambda start, stop: kernel(start, stop, *arguments), tiles)

    def fold(self, w: Tensor, state: Mapping[str, Tensor], steps: Steps) -> int:
        """See `Kernels.fold`."""
        arguments = (
            *self._buffers(w, state),
            self.layout.valid,
            steps.round,
            steps.first,
            steps.feeds,
            steps.start,
            steps.counter,
            steps.stream,
            steps.coefficient,
            steps.curvature,
            steps.hyper,
            *self._key,
        )
        return _over_tiles(
            lambda start, stop: self._module.fold(start, stop, *arguments),
            range(self.layout.tiles),
        )

    def project(
        self,
        v: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        points: Sequence[Point],
        tiles: range,
    ) -> NDArray[np.float64]:
        """See `Kernels.project`."""
        parts = range(-(-len(tiles) // PROJECT_TILES))
        sums = np.zeros((len(parts), len(points)))
        arguments = (
            tiles.start,
            tiles.stop,
            sums,
            *self._buffers(v, state),
            np.array([hyper[name] for name in self.method.hyper], np.float32),
            self.layout.valid,
            np.array([pack_step(point.step, point.direction) for point in points], np.uint64),
            np.array([point.stream for point in points], np.uint64),
            np.array([point.round for point in points], np.uint64),
            *self._key,
        )
        _over_tiles(lambda p0, p1: self._module.project(p0, p1, *arguments), parts, serial=1)
        return sum_parts(sums)
