"""The CUDA backend: one launch for the whole flat buffer, without fused multiply-adds.

With `TRITON_INTERPRET=1` the same kernels run on a CPU, slowly, which is how tests without a GPU
hold them against the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hiso.core.kernels import Spot, Steps
from hiso.core.kernels.triton_source import load
from hiso.core.layout import Layout
from hiso.core.method import Method
from hiso.core.noise import Noise, pack_step

_LAUNCH = {"enable_fp_fusion": False, "num_warps": 4}


class TritonKernels:
    """Kernels on the device of the buffers they are given."""

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
        spot: Spot,
        mu: float,
        tiles: range,
    ) -> None:
        """See `Kernels.perturb`."""

        def numbers(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=w.device)

        place = [pack_step(spot.step, spot.direction), spot.stream, spot.round]
        self._module.perturb[(len(tiles),)](
            *self._pointers(w, state),
            numbers([hyper[name] for name in self.method.hyper], torch.float32),
            self._valid,
            out,
            numbers(place, torch.int64),
            numbers([mu], torch.float32),
            numbers([self._seed], torch.int64),
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
