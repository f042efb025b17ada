"""The CUDA backend: one launch for the whole flat buffer, without fused multiply-adds.

With `TRITON_INTERPRET=1` the same kernels run slowly on a CPU; tests without a GPU compare them
with the reference in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.kernels import PROJECT_TILES, Steps, sum_parts
from hiso.core.kernels.triton_source import load
from hiso.core.method.base import Method
from hiso.core.noise import Noise, pack_step
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point

_LAUNCH = {"enable_fp_fusion": False, "num_warps": 4}


class TritonKernels:
    """Kernels that run on the device of their buffers."""

    name = "triton"

    def __init__(self, method: Method, noise: Noise, seed: int, layout: Layout) -> None:
        self.method, self.layout = method, layout
        self._seed = seed - 2**64 if seed >= 2**63 else seed
        self._module = load(method, noise)
        self._valid = torch.as_tensor(layout.valid)

    def _pointers(self, w: Tensor, state: Mapping[str, Tensor]) -> list[Tensor]:
        self._valid = self._valid.to(w.device)
        return [w, *(state[name] for name in self.method.state)]

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
        numbers = partial(torch.tensor, device=w.device)
        place = [pack_step(point.step, point.direction), point.stream, point.round]
        self._module.perturb[(len(tiles),)](
            *self._pointers(w, state),
            numbers([hyper[name] for name in self.method.hyper], dtype=torch.float32),
            self._valid,
            out,
            numbers(place, dtype=torch.int64),
            numbers([mu], dtype=torch.float32),
            numbers([self._seed], dtype=torch.int64),
            tiles.start,
            **_LAUNCH,
        )

    def fold(self, w: Tensor, state: Mapping[str, Tensor], steps: Steps) -> int:
        """See `Kernels.fold`. Waits for the device, to return the digest."""
        digest = torch.zeros(1, dtype=torch.int64, device=w.device)
        columns = [
            steps.round,
            steps.first,
            steps.feeds,
            steps.start,
            steps.counter,
            steps.stream,
        ]
        self._module.fold[(self.layout.tiles,)](
            *self._pointers(w, state),
            torch.as_tensor(steps.hyper).to(w.device),
            self._valid,
            *(torch.as_tensor(column.astype(np.int64)).to(w.device) for column in columns),
            torch.as_tensor(steps.coefficient).to(w.device),
            torch.as_tensor(steps.curvature).to(w.device),
            digest,
            torch.tensor([self._seed], dtype=torch.int64, device=w.device),
            len(steps.round),
            **_LAUNCH,
        )
        return int(digest.item()) % 2**64

    def project(
        self,
        v: Tensor,
        state: Mapping[str, Tensor],
        hyper: Mapping[str, float],
        points: Sequence[Point],
        tiles: range,
    ) -> NDArray[np.float64]:
        """See `Kernels.project`. Waits for the device."""
        numbers = partial(torch.tensor, device=v.device)
        parts = -(-len(tiles) // PROJECT_TILES)
        sums = torch.empty(parts, len(points), dtype=torch.float64, device=v.device)
        places = [(pack_step(s.step, s.direction), s.stream, s.round) for s in points]
        self._module.project[(len(points), parts)](
            *self._pointers(v, state),
            numbers([hyper[name] for name in self.method.hyper], dtype=torch.float32),
            self._valid,
            *(numbers(column, dtype=torch.int64) for column in zip(*places, strict=True)),
            sums,
            numbers([self._seed], dtype=torch.int64),
            tiles.start,
            tiles.stop,
            **_LAUNCH,
        )
        return sum_parts(sums.cpu().numpy())
