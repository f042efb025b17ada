"""`dimension`: rounds to a fixed accuracy against the number of weights, at a fixed κ."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import numpy as np

from hiso.core.method.base import Method
from hiso.core.method.registry import HiSo, ZoSgd
from hiso.lab.bench.timing import one_thread
from hiso.lab.theory.cells import Cell, Cells
from hiso.lab.theory.dimension.expected import Expected
from hiso.lab.theory.dimension.problems import Separable, Shifts
from hiso.lab.theory.dimension.race import race
from hiso.lab.theory.dimension.spectra import Groups, Spectrum
from hiso.lab.theory.fit import fit_slope
from hiso.lab.theory.presets import DimensionPreset, ProblemPreset, Racer
from hiso.run.observer import Observer

_TUNING_SEED = 0
_SHOWN = ["problem", "d", "method", "kappa", "median", "expected", "expected_common"]
_SHOWN_SLOPES = ["problem", "method", "slope", "error", "slope_of_kappa", "slope_of_zeta"]


@dataclass(frozen=True)
class Entry:
    """A method on a problem of d weights.

    Attributes:
        preset: The common preset.
        problem: The problem.
        spectrum: The spectrum for d weights.
        racer: The method's name.
    """

    preset: DimensionPreset
    problem: ProblemPreset
    spectrum: Spectrum
    racer: Racer

    @property
    def name(self) -> str:
        """The name of the entry."""
        return f"{self.problem.name}/{self.spectrum.d}/{self.racer}"

    def h(self) -> Groups:
        """The initial h, by group; the largest value is 1."""
        values = self.spectrum.values / self.spectrum.values.max()
        floored = np.maximum(values, self.preset.oracle_floor)
        return {"oracle": floored, "oracle_sqrt": np.sqrt(floored), "newton": values}.get(
            self.racer, np.ones_like(values)
        )

    def lr(self, multiple: float) -> float:
        """The learning rate of an entry of the grid."""
        return multiple * self.spectrum.step_unit(self.h(), self.preset.directions)

    def method(self, lr: float) -> Method:
        """The method with this learning rate."""
        if self.racer == "zo_sgd":
            return ZoSgd(lr=lr)
        if self.racer == "hiso":
            return HiSo(lr=lr, nu=self.preset.nu, floor=self.preset.floor)
        return HiSo(lr=lr, nu=0.0, floor=0.0)

    def race(self, multiple: float, seed: int, limit: int) -> Cell:
        """Runs one race."""
        p = self.preset
        outcome = race(
            Separable(self.spectrum, self.problem.curve),
            self.method(self.lr(multiple)),
            p.rules,
            Shifts(p.clients, p.client, p.batch, seed),
            target=p.target,
            limit=limit,
            seed=seed,
            h=None if self.racer in ("zo_sgd", "hiso") else self.h(),
        )
        return outcome.as_dict()

    def expected(self, *, common: bool = False) -> tuple[int, float] | None:
        """Smallest expected number of rounds over the grid, and its multiple; for least squares.

        With `common`, for a HiSo whose h is one number for all weights.
        """
        if self.problem.curve != "least_squares":
            return None
        p, h = self.preset, self.h()
        shifts = Shifts(p.clients, p.client, p.batch, 0)
        recursion = Expected(
            self.spectrum, shifts.gradient_noise(self.spectrum, p.sample), p.directions
        )
        found: list[tuple[int, float]] = []
        for multiple in p.grid:
            method = self.method(self.lr(multiple))
            learns = method if isinstance(method, HiSo) and self.racer == "hiso" else None
            rounds = recursion.rounds(
                lr=method.lr,
                h=h,
                target=p.target,
                limit=self.problem.max_rounds,
                learns=learns,
                common=common,
            )
            if rounds is not None:
                found.append((rounds, multiple))
        return min(found, default=None)


def entries(preset: DimensionPreset) -> Iterator[tuple[Entry, int]]:
    """Every entry, with its number of seeds, small problems first."""
    for problem in preset.problems:
        for d, seeds in zip(problem.dimensions, problem.seeds, strict=True):
            spectrum = (
                Spectrum.flat(d)
                if problem.head is None
                else Spectrum.headed(
                    d,
                    head=problem.head,
                    condition=problem.condition or 1,
                    tail_trace=problem.tail_trace or 0,
                    tail_share=problem.tail_share or 0,
                )
            )
            for racer in problem.methods:
                yield Entry(preset, problem, spectrum, racer), seeds


def run_dimension(preset: DimensionPreset, cells: Cells, observer: Observer) -> dict[str, Any]:
    """Runs all races that are not in `cells` yet.

    The learning rate is tuned on one seed; other seeds are reported. A trial ends when it has taken
    as many rounds as the best trial before it.

    Returns:
        rows: One row per entry, with measured and expected values.
        slopes: By problem and method, d log rounds / d log d with its standard error.
        grid: Every trial.
        tables: Tables for display.
    """
    work = list(entries(preset))
    total = sum(len(preset.grid) + seeds for _, seeds in work)
    rows: list[dict[str, Any]] = []
    trials: list[dict[str, Any]] = []
    with one_thread(), observer.phase("races", total) as advance:
        for entry, seeds in work:
            best, found = entry.problem.max_rounds, None
            for multiple in _middle_first(preset.grid):
                trial = partial(entry.race, multiple, _TUNING_SEED, best)
                cell = cells.get(f"{entry.name}/tune/{multiple:g}", trial)
                trials.append({"entry": entry.name, "multiple": multiple, **cell})
                if cell["rounds"] is not None:
                    best, found = cell["rounds"], multiple
                advance(1)
            rounds: list[int | None] = []
            for seed in range(1, seeds + 1):
                if found is not None:
                    final = partial(entry.race, found, seed, entry.problem.max_rounds)
                    rounds.append(cells.get(f"{entry.name}/seed/{seed}", final)["rounds"])
                advance(1)
            rows.append(_row(entry, found, rounds))
    return {
        "rows": rows,
        "slopes": _slopes(rows),
        "grid": trials,
        "tables": {"rows": _SHOWN, "slopes": _SHOWN_SLOPES},
    }


def _middle_first(grid: list[float]) -> list[float]:
    """The grid from its middle outwards."""
    middle = np.median(np.log(grid))
    return sorted(grid, key=lambda multiple: abs(np.log(multiple) - middle))


def _row(entry: Entry, multiple: float | None, rounds: list[int | None]) -> dict[str, Any]:
    spectrum, expected, h = entry.spectrum, entry.expected(), entry.h()
    common = entry.expected(common=True) if entry.racer == "hiso" else None
    middle = statistics.median(inf if count is None else count for count in rounds or [None])
    energy = spectrum.values * spectrum.shares  # of the first gradient, by group, up to a factor
    gain = float((energy / h).sum() / energy.sum())
    return {
        "problem": entry.problem.name,
        "curve": entry.problem.curve,
        "d": spectrum.d,
        "method": entry.racer,
        "kappa": spectrum.effective_rank,
        "trace": spectrum.trace,
        "zeta": spectrum.whitened_trace(h),
        "zeta_scaled": spectrum.whitened_trace(h) / gain,
        "multiple": multiple,
        "lr": None if multiple is None else entry.lr(multiple),
        "rounds": rounds,
        "reached": sum(count is not None for count in rounds),
        "median": middle if middle < inf else None,
        "expected": None if expected is None else expected[0],
        "expected_multiple": None if expected is None else expected[1],
        "expected_common": None if common is None else common[0],
    }


def _slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One slope for every problem and method with three or more values of d."""
    slopes: list[dict[str, Any]] = []
    for problem, method in dict.fromkeys((row["problem"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["problem"], row["method"]) == (problem, method)]
        points = [(row["d"], count) for row in mine for count in row["rounds"] if count]
        if len({d for d, _ in points}) < 3:
            continue
        measured = fit_slope(*zip(*points, strict=True))
        kappas = [row["kappa"] for row in mine]
        slopes.append(
            {
                "problem": problem,
                "method": method,
                "slope": measured.slope,
                "error": measured.error,
                "dimensions": [min(d for d, _ in points), max(d for d, _ in points)],
                "slope_of_kappa": fit_slope([row["d"] for row in mine], kappas).slope,
                "slope_of_zeta": fit_slope(
                    [row["d"] for row in mine], [row["zeta_scaled"] for row in mine]
                ).slope,
            }
        )
    return slopes
