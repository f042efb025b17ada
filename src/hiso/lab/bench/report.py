"""All measurements of one machine, with the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hiso.lab.bench.kernels import measure_perturb, measure_replay
from hiso.lab.bench.memory import MANY_CLIENTS, MODES, SMOLLM2, Mode, measure_memory
from hiso.lab.bench.rounds import measure_rounds
from hiso.lab.bench.targets import MANY_ROUNDS, judge
from hiso.run.doctor import describe
from hiso.run.observer import Observer


@dataclass(frozen=True)
class Size:
    """The amount of work for the measurements.

    Attributes:
        settings: Model, data and batch size of the rounds, as settings.
        repeats: Number of repeats.
        replay_weights: Number of weights in replays. The time is proportional to it, and memory is
            read once for all rounds, so it need not be large.
        replay_rounds: Numbers of rounds in replays, ascending.
        perturb_weights: Number of weights to perturb: more than fit in any cache.
        shape: The model whose memory is measured.
        modes: The modes for memory, each measured in its own process.
    """

    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    repeats: int = 3
    replay_weights: int = 2**20
    replay_rounds: tuple[int, ...] = (50, 200, MANY_ROUNDS)
    perturb_weights: int = 2**26
    shape: Mapping[str, Any] = field(default_factory=lambda: SMOLLM2)
    modes: tuple[Mode, ...] = MODES


FULL = Size()
"""SmolLM2-135M and Rotten Tomatoes: a few minutes on two cores."""


def measure_all(
    observer: Observer, *, against_usual: bool = False, size: Size = FULL
) -> dict[str, Any]:
    """All figures, with a description of the machine and the result for each target.

    Args:
        observer: Receives the progress.
        against_usual: Whether to run the usual implementation too.
        size: The amount of work.
    """
    cpu = torch.device("cpu")
    report: dict[str, Any] = {
        **describe(),
        **measure_rounds(size.settings, size.repeats, observer, against_usual=against_usual),
        "replay": measure_replay(size.replay_weights, size.replay_rounds, size.repeats, observer),
        "perturb": measure_perturb(size.perturb_weights, cpu, observer),
        "memory": _memory(size, observer),
    }
    if torch.cuda.is_available():
        gpu = torch.device("cuda")
        report["perturb_cuda"] = measure_perturb(size.perturb_weights, gpu, observer)
    return {**report, "targets": judge(report)}


def _memory(size: Size, observer: Observer) -> dict[str, Any]:
    """Bytes per trainable weight, by memory setting, method and dtype.

    `bytes_per_weight` is the peak during rounds, `expected` the peak by design,
    `start_bytes_per_weight` the peak before the rounds, and `many_clients` the peak of HiSo,
    float32, with 600 clients instead of 6.
    """
    held = measure_memory([*size.modes, MANY_CLIENTS], size.shape, observer)
    *each, many = held or [None] * (len(size.modes) + 1)
    figures: dict[str, Any] = {}
    for name, attribute in {
        "bytes_per_weight": "rounds",
        "expected": "expected",
        "start_bytes_per_weight": "start",
    }.items():
        table: dict[str, Any] = {}
        for mode, one in zip(size.modes, each, strict=True):
            by_dtype = table.setdefault(mode.memory, {}).setdefault(mode.method, {})
            by_dtype[mode.dtype] = None if one is None else getattr(one, attribute)
        figures[name] = table
    return figures | {
        "weights": None if many is None else many.weights,
        "many_clients": {
            "clients": MANY_CLIENTS.clients,
            "bytes_per_weight": None if many is None else many.rounds,
        },
    }
