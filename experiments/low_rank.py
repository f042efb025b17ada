"""Directions of low rank (EGGROLL) against full ones, on digits: half a minute.

python experiments/low_rank.py

A network of 64-32-10, 6 clients, 2 sampled, batch 32, mean of five seeds. A direction of rank r is
A·Bᵀ/√r for each weight matrix, with A and B of normal numbers, and normal for biases.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Floats = NDArray[np.float64]
SHAPES = [(64, 32), (32,), (32, 10), (10,)]
SIZES = [int(np.prod(shape)) for shape in SHAPES]
BATCH, SAMPLED, CLIENTS, MU = 32, 2, 6, 1e-3
AT = (50, 100, 200)


def split(weights: Floats) -> Iterator[Floats]:
    """The parameters."""
    parts = np.split(weights, np.cumsum(SIZES)[:-1])
    return (part.reshape(shape) for part, shape in zip(parts, SHAPES, strict=True))


def scores(weights: Floats, images: Floats) -> Floats:
    """The network."""
    first, bias, second, last = split(weights)
    return np.maximum(images @ first + bias, 0) @ second + last


def softmax(z: Floats) -> Floats:
    """By row."""
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def direction(draw: np.random.Generator, rank: int) -> Floats:
    """One direction; rank 0 is a full one."""
    parts = []
    for shape in SHAPES:
        if len(shape) == 1 or not rank:
            parts.append(draw.standard_normal(shape).ravel())
        else:
            left, right = (draw.standard_normal((size, rank)) for size in shape)
            parts.append((left @ right.T / np.sqrt(rank)).ravel())
    return np.concatenate(parts)


def run(images: Floats, digits: NDArray, p: int, rank: int, lr: float, seed: int) -> list[float]:
    """Test losses; `lr` 0 is `subspace_newton`."""
    draw, batches = np.random.default_rng(seed), np.random.default_rng(seed + 100)
    scale = np.repeat([np.sqrt(2 / 64), 0, np.sqrt(1 / 32), 0], SIZES)
    weights = draw.standard_normal(len(scale)) * scale
    shards = np.array_split(draw.permutation(1400), CLIENTS)
    c, found = 0.0, []
    for t in range(max(AT)):
        u = np.stack([direction(draw, rank) for _ in range(p)])
        steps, traces = [], []
        for client in batches.choice(CLIENTS, SAMPLED, replace=False):
            rows = batches.choice(shards[client], BATCH, replace=False)
            base = scores(weights, images[rows])
            j = np.stack([(scores(weights + MU * z, images[rows]) - base) / MU for z in u], 1)
            prob = softmax(base)
            slopes = np.einsum("bpc,bc->bp", j, prob - np.eye(10)[digits[rows]])
            g = slopes.mean(0)
            mean = np.einsum("bpc,bc->bp", j, prob)
            a = (np.einsum("bpc,bqc,bc->pq", j, j, prob) - mean.T @ mean) / BATCH
            traces.append(max(np.trace(a), np.mean(np.sum(slopes**2, 1))) / p)
            ridge = 14 * np.sqrt(p) / (SAMPLED * BATCH) * (c or traces[-1])
            steps.append(lr * g / p if lr else np.linalg.solve(a + ridge * np.eye(p), g) / 2)
        weights = weights - np.mean(steps, 0) @ u
        c = 0.9 * c + 0.1 * np.mean(traces) if c else float(np.mean(traces))
        if t + 1 in AT:
            prob = softmax(scores(weights, images[1400:]))
            right = prob[np.arange(len(prob)), digits[1400:]]
            found.append(float(-np.log(right + 1e-12).mean()))
    return found


def main() -> None:
    """Prints the mean losses and their standard errors."""
    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = images[order] / 16, digits[order]
    for name, p, lr in (("subspace_newton", 5, 0.0), ("subspace_newton", 20, 0.0), ("zo", 5, 0.03)):
        for rank in (0, 1, 4):
            losses = np.array([run(images, digits, p, rank, lr, seed) for seed in range(5)])
            shown = " ".join(f"{x:.3f}" for x in losses.mean(0))
            errors = " ".join(f"{x:.3f}" for x in losses.std(0, ddof=1) / np.sqrt(5))
            print(f"{name}, P = {p}, rank {rank or 'full'}: {shown} ± {errors}", flush=True)


if __name__ == "__main__":
    main()
