"""Checks whether hiso works on this machine, and how fast."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from hiso.core.kernels import Backend, Steps, load_kernels, pack
from hiso.core.method.registry import METHODS, HiSo
from hiso.core.noise import TILE
from hiso.core.noise.layout import Layout
from hiso.core.noise.point import Point
from hiso.core.record import Record
from hiso.run.observer import Observer

_PACKAGES = ("hiso", "torch", "numpy", "numba", "transformers", "datasets", "flwr-datasets", "gguf")
_WEIGHTS = 2**24


def examine(observer: Observer) -> dict[str, Any]:
    """Versions, threads, agreement of the backends, and the kernels' speed.

    `healthy` is whether numba and the reference give the same bits for every method.
    """
    agree: dict[str, Any] = {}
    with observer.phase("comparing backends", len(METHODS)) as advance:
        for name, method in METHODS.items():
            digests = {_small_fold(method(), backend) for backend in ("numba", "reference")}
            agree[name] = len(digests) == 1
            advance(1)
    with observer.phase("timing kernels"):
        speed = _speed()
    return {
        **describe(),
        "backends agree": agree,
        "speed": speed,
        "healthy": all(agree.values()),
    }


def describe() -> dict[str, dict[str, Any]]:
    """The versions in use, and a description of the machine."""
    return {
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in _PACKAGES}},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch CPU features": torch.backends.cpu.get_cpu_capability(),
            "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def sample_record(round: int, curvature: bool = False) -> Record:
    """A record of five directions, with typical coefficients."""
    p = np.arange(5)
    coefficient = (((p * 37 + round * 11) % 17 - 8) / 100).astype(np.float32)
    return Record(
        round,
        np.zeros(5, np.uint16),
        np.zeros(5, np.uint32),
        p.astype(np.uint16),
        coefficient,
        coefficient.copy() if curvature else None,
    )


def _small_fold(method: Any, backend: Backend) -> int:
    layout = Layout.of([("w", (3 * TILE + 5,))])
    kernels = load_kernels(backend, method, "binomial", 7, layout)
    w = torch.arange(layout.tiles * TILE, dtype=torch.float32)
    state = {name: torch.full_like(w, value) for name, value in method.state.items()}
    steps, _ = pack(
        method, [sample_record(r, method.measures_curvature) for r in range(3)], method.hyper
    )
    return kernels.fold(w, state, steps)


def _speed() -> dict[str, Any]:
    method = HiSo()
    layout = Layout.of([("w", (_WEIGHTS,))])
    kernels = load_kernels("auto", method, "binomial", 7, layout)
    w = torch.zeros(_WEIGHTS)
    state, out = {"h": torch.ones(_WEIGHTS)}, torch.empty(_WEIGHTS)
    steps: Steps = pack(method, [sample_record(r) for r in range(10)], method.hyper)[0]
    tiles = range(layout.tiles)
    replay = _seconds(lambda: kernels.fold(w, state, steps))
    perturb = _seconds(lambda: kernels.perturb(out, w, state, method.hyper, Point(0), 1e-3, tiles))
    copy = _seconds(lambda: out.copy_(w))
    return {
        "replay, G weights·directions/s": 50 * _WEIGHTS / replay / 1e9,
        "perturb, GB/s": 12 * _WEIGHTS / perturb / 1e9,
        "copy, GB/s": 8 * _WEIGHTS / copy / 1e9,
    }


def _seconds(work: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
