"""Compares the kernels with torch: replay with a normal_ + add_ loop, perturb with a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from hiso.core.identity import Identity
from hiso.core.kernels import load_kernels
from hiso.core.method.base import Method
from hiso.core.method.registry import HiSo, ZoSgd
from hiso.core.noise import TILE
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.lab.bench.resident import measurable, peak_of, resident
from hiso.lab.bench.timing import interleaved, one_thread
from hiso.run.doctor import sample_record
from hiso.run.observer import Observer

_TORCH_DIRECTIONS = 20
_PERTURB_REPEATS = 7


def measure_replay(
    weights: int, rounds: Sequence[int], repeats: int, observer: Observer
) -> dict[str, Any]:
    """Replay on one thread: its speed, its growth with the number of rounds, and its memory.

    `Replica.replay` folds each number of `rounds` (ascending) with 5 directions, for HiSo, and for
    the largest number also for ZO-SGD. The torch loop computes the main part of this: one
    `normal_` into a buffer and one in-place `add_` for each direction, without the division, the
    update of h and the digest of a replay.

    Returns:
        weights_directions_per_second_per_core: For HiSo, with the largest number of rounds.
        over_torch: This figure divided by that of the torch loop.
        linearity: Time per round with the largest number of rounds, divided by that with the
            smallest.
        growth_bytes: Peak of resident memory in the first of the largest replays, above the memory
            held before it; None if it cannot be measured.
        seconds: Time by number of rounds.
        zo_sgd: The first two figures for ZO-SGD.
        torch_weights_directions_per_second_per_core: The first figure for the torch loop.
    """
    records = [sample_record(r) for r in range(rounds[-1])]
    directions = len(records[0].coefficient)
    w, noise = torch.zeros(weights), torch.zeros(weights)

    def catch_up(method: Method, length: int) -> Callable[[], None]:
        identity = Identity(method=method, seed=0)
        replica = Replica(nn.ParameterList([torch.zeros(weights)]), identity)

        def run() -> None:
            replica.position = 0
            replica.replay(records[:length])

        return run

    def torch_loop() -> None:
        for _ in range(_TORCH_DIRECTIONS):
            noise.normal_()
            w.add_(noise, alpha=1e-6)

    work: dict[str, Callable[[], None]] = {str(n): catch_up(HiSo(), n) for n in rounds}
    work |= {"zo_sgd": catch_up(ZoSgd(), rounds[-1]), "torch": torch_loop}
    few, many = str(rounds[0]), str(rounds[-1])
    with one_thread(), observer.phase("timing replay", len(work) * (repeats + 1)) as advance:
        work[few]()
        held = resident() if measurable() else None
        growth = None if held is None else max(0, peak_of(work[many]) - held)
        times = interleaved(work, repeats, advance)
    amount = weights * rounds[-1] * directions
    torch_amount = weights * _TORCH_DIRECTIONS

    def speed(name: str) -> dict[str, float]:
        return {
            "weights_directions_per_second_per_core": amount / times.seconds(name),
            "over_torch": times.ratio("torch", name) * amount / torch_amount,
        }

    return {
        **speed(many),
        "linearity": times.ratio(many, few) * rounds[0] / rounds[-1],
        "growth_bytes": growth,
        "weights": weights,
        "directions": directions,
        "seconds": {str(n): times.seconds(str(n)) for n in rounds},
        "zo_sgd": speed("zo_sgd"),
        "torch_weights_directions_per_second_per_core": torch_amount / times.seconds("torch"),
    }


def measure_perturb(weights: int, device: torch.device, observer: Observer) -> dict[str, float]:
    """Compares a perturbation with a copy, in bytes moved per second, on all threads or a GPU.

    A float32 copy reads and writes 8 bytes per weight. A perturbation reads w and the method's
    states and writes the compute copy: 12 bytes per weight for HiSo, 10 with a bfloat16 copy, 8
    for ZO-SGD.

    Returns:
        over_copy, bfloat16_over_copy: HiSo's bandwidth divided by the copy's, by compute dtype.
        zo_sgd_over_copy: The same for ZO-SGD, float32.
        copy_bytes_per_second: The copy's bandwidth.
    """
    layout = Layout.of([("w", (weights,))])
    w = torch.zeros(layout.tiles * TILE, device=device)
    h, out, half = (
        torch.ones_like(w),
        torch.empty_like(w),
        torch.empty_like(w, dtype=torch.bfloat16),
    )
    rounds = count()

    def perturb(method: Method, into: Tensor) -> Callable[[], None]:
        kernels = load_kernels("auto", method, "binomial", 0, layout, device)
        state = dict.fromkeys(method.state, h)

        def run() -> None:
            point = Point(next(rounds))
            kernels.perturb(into, w, state, method.hyper, point, 1e-3, range(layout.tiles))
            _finish(device)

        return run

    def copy() -> None:
        out.copy_(w)
        _finish(device)

    moved = {"copy": 8, "hiso": 12, "bfloat16": 10, "zo_sgd": 8}
    work = {
        "copy": copy,
        "hiso": perturb(HiSo(), out),
        "bfloat16": perturb(HiSo(), half),
        "zo_sgd": perturb(ZoSgd(), out),
    }
    total = len(work) * (_PERTURB_REPEATS + 1)
    with observer.phase(f"timing perturbations on {device}", total) as advance:
        times = interleaved(work, _PERTURB_REPEATS, advance)

    def over_copy(name: str) -> float:
        return times.ratio("copy", name) * moved[name] / moved["copy"]

    return {
        "over_copy": over_copy("hiso"),
        "bfloat16_over_copy": over_copy("bfloat16"),
        "zo_sgd_over_copy": over_copy("zo_sgd"),
        "copy_bytes_per_second": moved["copy"] * weights / times.seconds("copy"),
    }


def _finish(device: torch.device) -> None:
    """Waits for a GPU, which runs asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
