"""The figures of a comparison: the chosen values, and the results over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiso.lab.compare.execute import Failure
from hiso.lab.compare.measure import Curve, Goal, read_curve
from hiso.lab.compare.spec import Comparison
from hiso.lab.compare.trials import Trial
from hiso.run.results import Summary

Key = tuple[str, str, str]
"""Labels of task, model and method."""


@dataclass(frozen=True)
class Run:
    """A run that has ended: its summary and curve, or neither if its loss exploded."""

    trial: Trial
    summary: Summary | None
    curve: Curve | None

    @property
    def key(self) -> Key:
        """Task, model and method of the run."""
        return self.trial.task, self.trial.model, self.trial.method


def read_runs(
    trials: Iterable[Trial], results: Mapping[str, Summary | Failure], root: Path, metric: str
) -> list[Run]:
    """The runs with their curves."""
    runs: list[Run] = []
    for trial in trials:
        if isinstance(result := results[trial.folder], Summary):
            runs.append(Run(trial, result, read_curve(root / trial.folder, metric)))
        else:
            runs.append(Run(trial, None, None))
    return runs


def choose(
    runs: Sequence[Run], goal: Goal
) -> tuple[dict[Key, Mapping[str, float]], list[dict[str, Any]]]:
    """The best values of each method, and the whole grid.

    The best value has the highest mean, over tuning seeds, of the last accuracy on the tuning
    split; of equal ones, the lower loss. If the loss is the goal, it has the lowest mean last
    loss. Values with which any run failed are excluded.
    """
    groups: dict[tuple[Key, tuple[tuple[str, float], ...]], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.key, tuple(run.trial.chosen.items())].append(run)
    best: dict[Key, tuple[tuple[float, float], Mapping[str, float]]] = {}
    grid: list[dict[str, Any]] = []
    for (key, chosen), group in groups.items():
        row: dict[str, Any] = dict(zip(("task", "model", "method"), key, strict=True))
        row |= {"values": dict(chosen), "seeds": [run.trial.seed for run in group]}
        curves = [run.curve for run in group if run.curve is not None]
        row["failed"] = len(group) - len(curves)
        if curves:
            row["accuracy"] = statistics.fmean(curve.accuracy[-1] for curve in curves)
            row["loss"] = statistics.fmean(curve.loss[-1] for curve in curves)
        if len(curves) == len(group):
            score = row["accuracy"], -row["loss"]
            if goal == "last loss":
                score = -row["loss"], row["accuracy"]
            if key not in best or score > best[key][0]:
                best[key] = score, dict(chosen)
        grid.append(row)
    for row in grid:
        _, chosen = best.get((row["task"], row["model"], row["method"]), (None, None))
        row["chosen"] = row["values"] == chosen
    return {key: chosen for key, (_, chosen) in best.items()}, grid


def compare(runs: Sequence[Run], comparison: Comparison) -> list[dict[str, Any]]:
    """A row for each task, model and method; figures are {"mean", "deviation", "values"}.

    target: The target of `to_target`: the comparison's own, or the reference's mean best accuracy
        (or last loss, if that is the goal) on this task and model; None without either.
    to_target: Rounds, bytes and passes until the target was first reached on the tuning split,
        over the seeds that reached it; `reached` is their number.
    best, loss: Best accuracy and final loss on the tuning split.
    test, test_loss: Accuracy and loss on the test split at the end.
    at_equal_bytes, at_equal_passes: Tuning accuracy at the cost that the cheapest method of the
        same task and model spent in total.
    """
    rows: list[dict[str, Any]] = []
    by_place: dict[tuple[str, str], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        by_place[run.key[:2]][run.trial.method].append(run)
    for (task, model), methods in by_place.items():
        target = _target(methods, comparison)
        whole = [run.curve for group in methods.values() for run in group if run.curve]
        budget = {
            "bytes": min((curve.bytes[-1] for curve in whole), default=0),
            "passes": min((curve.passes[-1] for curve in whole), default=0),
        }
        for method, group in methods.items():
            row: dict[str, Any] = {"task": task, "model": model, "method": method}
            row |= {"values": dict(group[0].trial.chosen), "seeds": [r.trial.seed for r in group]}
            row |= {"target": target, "budget": budget}
            row["goal"] = comparison.goal
            rows.append(row | _figures(group, target, budget, comparison))
    return rows


def _target(methods: Mapping[str, Sequence[Run]], comparison: Comparison) -> float | None:
    if comparison.target is not None or comparison.reference is None:
        return comparison.target
    curves = [run.curve for run in methods.get(comparison.reference, ()) if run.curve]
    best = [c.best if comparison.goal == "best metric" else c.loss[-1] for c in curves]
    return statistics.fmean(best) if best else None


def _figures(
    group: Sequence[Run],
    target: float | None,
    budget: Mapping[str, int],
    comparison: Comparison,
) -> dict[str, Any]:
    metric, goal = comparison.metric, comparison.goal
    curves = [run.curve for run in group if run.curve is not None]
    done = [run.summary for run in group if run.summary is not None]
    hits = [
        (c, i) for c in curves if target is not None and (i := c.first(target, goal)) is not None
    ]

    def over(values: Iterable[float | None]) -> dict[str, Any]:
        return spread([value for value in values if value is not None])

    counts: dict[str, Callable[[Curve, int], float]] = {
        "rounds": lambda c, i: c.positions[i],
        "bytes": lambda c, i: c.bytes[i],
        "passes": lambda c, i: c.passes[i],
    }
    return {
        "failed": len(group) - len(curves),
        "reached": len(hits),
        "to_target": {name: over(get(c, i) for c, i in hits) for name, get in counts.items()},
        "best": over(curve.best for curve in curves),
        "loss": over(curve.loss[-1] for curve in curves),
        "test_loss": over(summary.metrics_after.get("loss") for summary in done),
        "test": over(summary.metrics_after.get(metric) for summary in done),
        "test_before": over(summary.metrics_before.get(metric) for summary in done),
        "at_equal_bytes": over(curve.at(curve.bytes, budget["bytes"]) for curve in curves),
        "at_equal_passes": over(curve.at(curve.passes, budget["passes"]) for curve in curves),
        "bytes": over(curve.bytes[-1] for curve in curves),
        "passes": over(curve.passes[-1] for curve in curves),
        "seconds_per_round": over(summary.seconds_per_round for summary in done),
        "digests": [summary.digest for summary in done],
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and sample deviation; None if there are too few values."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "values": [value if math.isfinite(value) else None for value in values],
    }
