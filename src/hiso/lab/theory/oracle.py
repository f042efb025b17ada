"""`oracle`: whole runs on digits with a true diagonal as H."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.method.base import Method
from hiso.core.method.registry import HiSo, ZoSgd
from hiso.core.replica.replica import Replica
from hiso.errors import Diverged
from hiso.lab.bench.timing import one_thread
from hiso.lab.theory.cells import Cell, Cells
from hiso.lab.theory.curvature import images
from hiso.lab.theory.curvature.digits import factors_of
from hiso.lab.theory.curvature.factors import shape_of
from hiso.lab.theory.curvature.federation import Federation, set_state, unpadded
from hiso.lab.theory.curvature.second_derivatives import FlatModel
from hiso.lab.theory.presets import Candidate, OraclePreset
from hiso.run.observer import Observer

_TUNING_SEED = 1_000
_BLOWN_UP = 10


@dataclass(frozen=True)
class _Data:
    """Images and labels for training and for the test."""

    inputs: Tensor
    labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor


def run_oracle(preset: OraclePreset, cells: Cells, observer: Observer) -> dict[str, Any]:
    """Trains with every candidate for H that is not in `cells` yet.

    The learning rate is tuned on one seed, by the last training loss; other seeds are reported.

    Returns:
        rows: One row per candidate.
        grid: Every trial.
        curves: By candidate, the mean test accuracy at each evaluated position.
        tables: Tables for display.
    """
    data = _Data(*images.digits())
    total = len(preset.candidates) * (len(preset.grid) + len(preset.seeds))
    rows: list[dict[str, Any]] = []
    trials: list[dict[str, Any]] = []
    curves: dict[str, list[float]] = {}
    with one_thread(), observer.phase("runs", total) as advance:
        for candidate in preset.candidates:

            def run(lr: float, seed: int, name: Candidate = candidate) -> Cell:
                found = cells.get(
                    f"{name}/{lr:g}/{seed}", partial(_run, preset, data, name, lr, seed)
                )
                advance(1)
                return found

            tuned = {lr: run(lr, _TUNING_SEED) for lr in preset.grid}
            trials += [{"candidate": candidate, "lr": lr, **cell} for lr, cell in tuned.items()]
            lr = min(tuned, key=lambda lr: tuned[lr]["loss"])
            runs = [run(lr, seed) for seed in preset.seeds]
            rows.append(_row(candidate, lr, runs))
            curves[candidate] = np.mean([cell["accuracies"] for cell in runs], axis=0).tolist()
    shown = ["candidate", "lr", "accuracy", "accuracy_deviation", "loss", "loss_deviation"]
    return {"rows": rows, "grid": trials, "curves": curves, "tables": {"rows": shown}}


def _row(candidate: str, lr: float, runs: Sequence[Cell]) -> dict[str, Any]:
    row: dict[str, Any] = {"candidate": candidate, "lr": lr}
    for key in ("accuracy", "loss"):
        values = [cell[key] for cell in runs]
        row |= {
            key: statistics.mean(values),
            f"{key}_deviation": statistics.stdev(values) if len(values) > 1 else None,
            f"{key}_by_seed": values,
        }
    return row


def _run(preset: OraclePreset, data: _Data, candidate: Candidate, lr: float, seed: int) -> Cell:
    """One run; if its loss explodes, the result has the last values and an infinite loss."""
    federation = Federation(
        preset.rules,
        _method(preset, candidate, lr),
        data.inputs,
        data.labels,
        preset.batch_size,
        seed,
    )
    accuracies: list[float] = []
    losses: list[float] = []
    for replica in _positions(preset, federation, candidate):
        replica.write()
        accuracies.append(images.accuracy(replica.module, data.test_inputs, data.test_labels))
        losses.append(_loss(replica.module, data))
        if not losses[-1] <= _BLOWN_UP * losses[0]:
            break
    missing = preset.rounds // preset.look_every + 1 - len(accuracies)
    worst = _BLOWN_UP * losses[0]
    blown_up = missing > 0 or not losses[-1] <= worst
    return {
        "accuracies": accuracies + missing * accuracies[-1:],
        "accuracy": accuracies[-1],
        "loss": worst if blown_up else losses[-1],
        "blown_up": blown_up,
    }


def _method(preset: OraclePreset, candidate: Candidate, lr: float) -> Method:
    if candidate == "one":
        return ZoSgd(lr=lr)
    if candidate == "hiso":
        return HiSo(lr=lr, nu=preset.nu, floor=preset.floor)
    return HiSo(lr=lr, nu=0.0, floor=0.0)


def _positions(
    preset: OraclePreset, federation: Federation, candidate: Candidate
) -> Iterator[Replica]:
    """The replica before the first round and after every `look_every`, until its loss explodes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        federation.ledger(Path(folder) / "ledger.sqlite") as ledger,
    ):
        simulation = federation.simulation(ledger)
        replica = simulation.replica
        yield replica
        for done in range(preset.rounds):
            if done % preset.measure_every == 0 and candidate not in ("one", "hiso"):
                h = torch.from_numpy(_measure(preset, federation, replica, candidate)).float()
                set_state(replica, "h", h)
            try:
                simulation.round()
            except Diverged:
                return
            if (done + 1) % preset.look_every == 0:
                yield replica


def _measure(
    preset: OraclePreset, federation: Federation, replica: Replica, candidate: Candidate
) -> NDArray[np.float64]:
    count, batch = preset.examples, preset.sample * preset.batch_size
    inputs, labels = federation.inputs[:count].double(), federation.labels[:count]
    at = unpadded(replica.layout, replica.weights).double()
    model = FlatModel(federation.module(), inputs, labels)
    return shape_of(candidate, factors_of(model, at), share=preset.share, batch=batch)


@torch.inference_mode()
def _loss(module: nn.Module, data: _Data) -> float:
    return float(nn.functional.cross_entropy(module(data.inputs), data.labels))
