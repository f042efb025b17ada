"""Rounding to half precision in the kernels against torch's, on every kind of number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiso.core.kernels import load_kernels
from hiso.core.method.registry import ZoSgd
from hiso.core.noise import TILE
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point


def patterns() -> torch.Tensor:
    """All signs and exponents, with mantissas at, beside and between the ties of both formats."""
    tails = [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001, 0x7FFF, 0x8000, 0x8001]
    tails += [0x17FFF, 0x18000, 0x18001, 0x7FEFFF, 0x7FF000, 0x7FFFFF, 0x400000, 0x3FFFFF]
    tails += np.random.default_rng(0).integers(0, 2**23, 200).tolist()
    high = np.arange(2**9, dtype=np.uint32)[:, None] << 23
    bits = (high | np.array(tails, np.uint32)).reshape(-1)
    values = torch.from_numpy(bits.view(np.float32).copy())
    return values[~values.isnan()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_everywhere(dtype):
    values = patterns()
    layout = Layout.of([("w", (values.numel(),))])
    w = torch.zeros(layout.tiles * TILE)
    w[: values.numel()] = values
    out = torch.empty_like(w, dtype=dtype)
    kernels = load_kernels("numba", ZoSgd(), "binomial", 0, layout)
    kernels.perturb(out, w, {}, {"lr": 0.0}, Point(0), 0.0, range(layout.tiles))
    ours = out[: values.numel()].view(torch.int16)
    # w + 0·u turns -0 into +0 where 0·u is +0, so zeros are compared by value
    expected = values.to(dtype)
    same = (ours == expected.view(torch.int16)) | (expected == 0)
    assert same.all(), values[~same][:10]
    assert (out[: values.numel()][expected == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_nan_stays_nan(dtype):
    layout = Layout.of([("w", (8,))])
    w = torch.zeros(TILE)
    w[:8] = float("nan")
    out = torch.zeros(TILE, dtype=dtype)
    kernels = load_kernels("numba", ZoSgd(), "binomial", 0, layout)
    kernels.perturb(out, w, {}, {"lr": 0.0}, Point(0), 1.0, range(1))
    assert out[:8].isnan().all()
    assert not out[8:].isnan().any()
