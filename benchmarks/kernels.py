"""The kernels against torch: replay against a normal_ + add_ loop, perturb against a copy.

    python benchmarks/kernels.py [--json]

10^8 weights, HiSo, 20 rounds of 5 directions, all in one process on torch's threads. The torch
loop is what replay replaces: one `normal_` into a buffer and one in-place `add_` per direction,
without the division, the curvature and the digest that replay does besides; it is timed for two
rounds, and scaled by ten. Bandwidths count bytes moved: a perturbation reads w and h and writes
the copy (12 bytes a weight), a copy reads and writes (8).
"""

from __future__ import annotations

import numpy as np
import torch
from timing import interleaved, report

from hiso import HiSo, ZoSgd
from hiso.core.kernels import Spot, load_kernels, pack
from hiso.core.layout import Layout
from hiso.core.method import Method
from hiso.core.record import Record

WEIGHTS, ROUNDS, DIRECTIONS, TORCH_ROUNDS = 10**8, 20, 5, 2


def records(count: int) -> list[Record]:
    p = np.arange(DIRECTIONS, dtype=np.uint16)
    zeros = np.zeros(DIRECTIONS)
    coefficient = np.full(DIRECTIONS, 1e-3, np.float32)
    return [Record(r, zeros.astype("u2"), zeros.astype("u4"), p, coefficient) for r in range(count)]


def main() -> None:
    layout = Layout.of([("w", (WEIGHTS,))])
    tiles = range(layout.tiles)
    w, out, noise = (torch.zeros(layout.tiles * 2048) for _ in range(3))

    def kernels(method: Method):
        state = {name: torch.full_like(w, value) for name, value in method.state.items()}
        loaded = load_kernels("numba", method, "binomial", 1, layout)
        steps = pack(method, records(ROUNDS), method.hyper)[0]
        return (
            lambda: loaded.fold(w, state, steps),
            lambda: loaded.perturb(out, w, state, method.hyper, Spot(0, 0, 0, 0), 1e-3, tiles),
        )

    def torch_loop() -> None:
        for _ in range(TORCH_ROUNDS * DIRECTIONS):
            noise.normal_()
            w.add_(noise, alpha=1e-6)

    replay, perturb = kernels(HiSo())
    replay_sgd, perturb_sgd = kernels(ZoSgd())
    seconds = interleaved(
        {
            "torch": torch_loop,
            "replay": replay,
            "replay_sgd": replay_sgd,
            "perturb": perturb,
            "copy": lambda: out.copy_(w),
            "perturb_sgd": perturb_sgd,
        },
        repeats=3,
    )
    work = WEIGHTS * ROUNDS * DIRECTIONS
    torch_seconds = seconds["torch"] * ROUNDS / TORCH_ROUNDS
    copy_bandwidth = 8 * WEIGHTS / seconds["copy"]
    report(
        "kernels",
        {
            "replay.over_torch (HiSo)": torch_seconds / seconds["replay"],
            "replay.over_torch (ZO-SGD)": torch_seconds / seconds["replay_sgd"],
            "replay, G weights·directions/s (HiSo)": work / seconds["replay"] / 1e9,
            "torch loop, G weights·directions/s": work / torch_seconds / 1e9,
            "perturb.over_copy (HiSo, bytes)": 12 * WEIGHTS / seconds["perturb"] / copy_bandwidth,
            "perturb.over_copy (ZO-SGD, bytes)": 8
            * WEIGHTS
            / seconds["perturb_sgd"]
            / copy_bandwidth,
            "copy, GB/s": copy_bandwidth / 1e9,
        },
    )


if __name__ == "__main__":
    main()
