"""Reference kernels in NumPy: every operation separately, a few tiles at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.kernels import (
    DIGEST_ARRAY,
    DIGEST_MULTIPLIER,
    DIGEST_STRIDE,
    PROJECT_TILES,
    Steps,
    sum_parts,
)
from hiso.core.method.base import Method
from hiso.core.noise import TILE, Noise
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.noise.reference import direction

_CHUNK = 256
Floats = NDArray[np.float32]


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The bijection of 64-bit words in the digest."""
    x = (x ^ (x >> np.uint64(32))) * np.uint64(DIGEST_MULTIPLIER)
    x = (x ^ (x >> np.uint64(32))) * np.uint64(DIGEST_MULTIPLIER)
    return x ^ (x >> np.uint64(32))


def _float32(value: Any, shape: tuple[int, ...]) -> Floats:
    """The result of a method's function as an array; a Python number applies to every weight."""
    if type(value) not in (int, float) and value.dtype != np.float32:
        raise TypeError(f"a method left float32 for {value.dtype}: use hiso.core.method.ops")
    return np.broadcast_to(np.asarray(value, np.float32), shape)


def _views(state: Mapping[str, Tensor]) -> dict[str, Floats]:
    return {name: tensor.numpy() for name, tensor in state.items()}


class ReferenceKernels:
    """Slow and simple; tests compare every other backend with it."""

    name = "reference"

    def __init__(self, method: Method, noise: Noise, seed: int, layout: Layout) -> None:
        self.method, self.layout, self.seed = method, layout, seed
        self.noise: Noise = noise

    def _chunks(self, tiles: range) -> Iterator[tuple[range, NDArray[np.bool_]]]:
        inside = np.arange(TILE)
        for start in range(tiles.start, tiles.stop, _CHUNK):
            chunk = range(start, min(start + _CHUNK, tiles.stop))
            valid = inside < self.layout.valid[chunk.start : chunk.stop, None]
            yield chunk, valid.reshape(-1)

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
        hypers = {name: np.float32(value) for name, value in hyper.items()}
        views = _views(state)
        for chunk, valid in self._chunks(tiles):
            here = slice(chunk.start * TILE, chunk.stop * TILE)
            u = self._direction(point, chunk)
            moved = np.zeros_like(u) + np.float32(mu) * u
            frozen = {name: views[name][here] for name in self.method.round_state}
            denom = self.method.denom(frozen, hypers)
            if denom is not None:
                with np.errstate(divide="ignore", invalid="ignore"):
                    moved = moved / denom
            moved = w.numpy()[here] + moved
            there = slice((chunk.start - tiles.start) * TILE, (chunk.stop - tiles.start) * TILE)
            mask = torch.as_tensor(valid)
            out[there][mask] = torch.as_tensor(moved)[mask].to(out.dtype)

    def fold(self, w: Tensor, state: Mapping[str, Tensor], steps: Steps) -> int:
        """See `Kernels.fold`."""
        digest = 0
        views = _views(state)
        for chunk, valid in self._chunks(range(self.layout.tiles)):
            here = slice(chunk.start * TILE, chunk.stop * TILE)
            weights = w.numpy()[here]
            states = {k: v[here] for k, v in views.items()}
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                new, new_states = self._walk(weights.copy(), dict(states), steps, chunk)
            weights[valid] = new[valid]
            for name, value in states.items():
                if new_states[name] is not value:
                    value[valid] = new_states[name][valid]
            index = np.arange(here.start, here.stop, dtype=np.uint64)[valid]
            for number, array in enumerate([weights, *states.values()]):
                key = (index + np.uint64(number * DIGEST_ARRAY)) * np.uint64(DIGEST_STRIDE)
                bits = array[valid].view(np.uint32).astype(np.uint64)
                digest += int(mix(bits + key).sum(dtype=np.uint64))
        return digest % 2**64

    def project(
        self,
        v: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        points: Sequence[Point],
        tiles: range,
    ) -> NDArray[np.float64]:
        """See `Kernels.project`."""
        hypers = {name: np.float32(value) for name, value in hyper.items()}
        views = _views(state)
        parts = [np.zeros(len(points))]
        for start in range(tiles.start, tiles.stop, PROJECT_TILES):
            chunk = range(start, min(start + PROJECT_TILES, tiles.stop))
            ahead = (chunk.start - tiles.start) * TILE
            part = v.numpy()[ahead : ahead + len(chunk) * TILE].astype(np.float64)
            here = slice(chunk.start * TILE, chunk.start * TILE + len(part))
            denom = self.method.denom({k: views[k][here] for k in self.method.round_state}, hypers)
            with np.errstate(all="ignore"):
                shaped = part if denom is None else part / denom
                u = [self._direction(point, chunk)[: len(part)] for point in points]
                parts.append(np.array([(shaped * each).sum() for each in u]))
        return sum_parts(np.stack(parts))

    def _walk(
        self, w: Floats, state: dict[str, Floats], steps: Steps, tiles: range
    ) -> tuple[Floats, dict[str, Floats]]:
        method = self.method
        moving = {name: state[name] for name in method.step_state}
        learned = {name: state[name] for name in method.round_state}
        denom = None
        for s in range(len(steps.round)):
            hyper = dict(zip(method.hyper, steps.hyper[s], strict=True))
            if steps.first[s]:
                denom = method.denom(learned, hyper)
            s1, s2 = np.zeros_like(w), np.zeros_like(w)
            for n in range(steps.start[s], steps.start[s + 1]):
                counter = int(steps.counter[n])
                stream = int(steps.stream[n])
                point = Point(int(steps.round[s]), counter >> 16, stream, counter & 0xFFFF)
                u = self._direction(point, tiles)
                s1 = s1 + steps.coefficient[n] * u
                if method.measures_curvature:
                    s2 = s2 + steps.curvature[n] * (u * u)
            dx = s1 if denom is None else s1 / denom
            moved, stepped = method.step(w, moving, dx, hyper)
            w = _float32(moved, w.shape)
            moving = {name: _float32(stepped[name], w.shape) for name in moving}
            if steps.feeds[s]:
                new = method.learn(learned, dx, s2, hyper)
                learned = {name: _float32(new[name], w.shape) for name in learned}
        return w, {**moving, **learned}

    def _direction(self, point: Point, tiles: range) -> Floats:
        return direction(
            self.noise,
            self.seed,
            round=point.round,
            step=point.step,
            stream=point.stream,
            direction=point.direction,
            tiles=tiles,
        )
