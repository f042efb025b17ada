"""The directions: known answers, equal bits on every backend, and their statistics."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from hiso.core.kernels import load_kernels
from hiso.core.method.registry import ZoSgd
from hiso.core.noise import NOISE_FORMAT, TILE, split_seed
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.noise.reference import direction, philox

NOISES = ("binomial", "gaussian")
HERE = {"round": 3, "step": 1, "stream": 2, "direction": 4}


def draw(noise: str, seed: int = 11, tiles: range = range(256), **where: int) -> np.ndarray:
    return direction(noise, seed, **{**HERE, **where}, tiles=tiles).astype(np.float64)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(counter, key, expected):
    assert tuple(int(word) for word in philox(counter, key)) == expected


GOLDEN = {
    "binomial": "81dd9620",
    "gaussian": "7b4bb5eb",
}


@pytest.mark.parametrize("noise", NOISES)
def test_format_is_pinned(noise):
    """A change here breaks every existing run: bump NOISE_FORMAT and this value together."""
    u = direction(
        noise, 2**64 - 3, round=2**32 - 1, step=7, stream=9, direction=65535, tiles=range(5, 9)
    )
    digest = hashlib.sha256(u.astype("<f4").tobytes()).hexdigest()[:8]
    assert (NOISE_FORMAT, digest) == (1, GOLDEN[noise])


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_numba_draws_the_reference_bits(noise, seed):
    layout = Layout.of([("w", (40 * TILE,))])
    kernels = load_kernels("numba", ZoSgd(), noise, seed, layout)
    w = torch.zeros(40 * TILE)
    for point in (Point(0), Point(2**32 - 1, 2**16 - 1, 2**32 - 1, 2**16 - 1)):
        out = torch.empty(40 * TILE)
        kernels.perturb(out, w, {}, {"lr": 0.1}, point, 1.0, range(40))
        expected = direction(
            noise,
            seed,
            round=point.round,
            step=point.step,
            stream=point.stream,
            direction=point.direction,
            tiles=range(40),
        )
        assert np.array_equal(out.numpy(), expected)


def test_tiles_can_be_drawn_by_themselves():
    whole = draw("binomial", tiles=range(10))
    assert np.array_equal(whole[4 * TILE : 7 * TILE], draw("binomial", tiles=range(4, 7)))


def test_binomial_has_seventeen_exact_levels():
    u = draw("binomial")
    assert set(np.unique(u * 2)) <= set(range(-8, 9))
    observed = np.bincount((u * 2 + 8).astype(int), minlength=17)
    expected = stats.binom(16, 0.5).pmf(np.arange(17)) * u.size
    chi2 = ((observed - expected) ** 2 / expected).sum()
    assert chi2 < stats.chi2(16).isf(1e-6)


def test_gaussian_is_normal():
    u = draw("gaussian")
    assert stats.kstest(u, "norm").pvalue > 1e-6
    assert np.abs(u).max() > 4.5


@pytest.mark.parametrize("noise", NOISES)
def test_moments(noise):
    u = draw(noise)
    sigma = 1 / np.sqrt(u.size)
    kurtosis = -0.125 if noise == "binomial" else 0.0
    assert abs(u.mean()) < 5 * sigma
    assert abs((u**2).mean() - 1) < 5 * sigma * np.sqrt((u**4).mean() - 1)
    assert abs((u**4).mean() - 3 - kurtosis) < 5 * sigma * np.sqrt((u**8).mean())


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(
    "other",
    [
        {"round": 4},
        {"round": 2},
        {"step": 0},
        {"stream": 0},
        {"direction": 5},
        {"seed": 12},
        {"seed": 11 + 2**32},
    ],
)
def test_neighbouring_directions_are_uncorrelated(noise, other):
    a, b = draw(noise), draw(noise, **other)
    bound = 5 / np.sqrt(a.size)
    assert abs((a * b).mean()) < bound
    assert abs(((a**2 - 1) * (b**2 - 1)).mean()) < 2 * bound * ((a**2 - 1) ** 2).mean()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("lag", [1, 2, 255, 256, 257, 512, 1024, TILE])
def test_neighbouring_elements_are_uncorrelated(noise, lag):
    u = draw(noise)
    assert abs((u[lag:] * u[:-lag]).mean()) < 5 / np.sqrt(u.size - lag)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_outside_64_bits_are_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        split_seed(seed)


def test_a_layout_that_exceeds_the_block_counter_is_refused():
    with pytest.raises(ValueError, match="exceed"):
        Layout.of([("w", (2**34 + 1,))])
