"""Groups of runs, their names, and means over them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from hiso.report.gather import Floats, Run
from hiso.run.formatting import figure
from hiso.run.settings import Settings

AXES = ("rounds", "bytes", "passes")


@dataclass(frozen=True, eq=False)
class Group:
    """Runs under one name: they differ only in the seed, or were given one label."""

    label: str
    runs: list[Run]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings with the same value in all runs of the group, without the seed."""
        first, *others = (run.settings for run in self.runs)
        return {
            key: value
            for key, value in first.items()
            if key != "seed" and all(key in s and s[key] == value for s in others)
        }

    @property
    def seeds(self) -> str:
        """The seeds of the group as text, such as "0, 1, 2"."""
        return ", ".join(str(run.settings.get("seed", "–")) for run in self.runs)


@dataclass(frozen=True, eq=False)
class Curve:
    """A figure of a group's runs by position: means over the runs that have reached it.

    Attributes:
        position: Positions of the log, float64 [N]; for windows of rounds, the middle of each.
        mean: Mean over runs, float64 [N].
        deviation: Sample deviation over runs, float64 [N]; NaN if there is only one run.
        count: Number of runs at each position, int [N].
        spent: Mean cost of reaching each position, by kind, float64 [N].
    """

    position: Floats
    mean: Floats
    deviation: Floats
    count: list[int]
    spent: Mapping[str, Floats]


def group_runs(runs: Sequence[Run], labels: Mapping[Path, str] | None = None) -> list[Group]:
    """Groups runs by label, or otherwise by their settings without the seed.

    Args:
        runs: The runs.
        labels: For each run's folder, the name of its group.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        if labels is not None:
            key = labels[run.path]
        elif run.settings:
            key = json.dumps({**run.settings, "seed": None}, sort_keys=True)
        else:
            key = str(run.path)
        found.setdefault(key, []).append(run)
    members = list(found.values())
    names = _names(members) if labels is None else list(found)
    return [Group(*pair) for pair in zip(names, members, strict=True)]


def run_names(groups: Iterable[Group]) -> dict[str, Run]:
    """Every run with a unique name: its group, and what distinguishes it within the group."""
    named: dict[str, Run] = {}
    for group in groups:
        seeds = [run.settings.get("seed") for run in group.runs]
        for run, seed in zip(group.runs, seeds, strict=True):
            if len(seeds) == 1:
                named[group.label] = run
            elif seed is not None and seeds.count(seed) == 1:
                named[f"{group.label}, seed {seed}"] = run
            else:
                named[f"{group.label} ({run.path})"] = run
    return named


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys with different values: the method first, then in the order of `Settings`."""
    known = ["method", *Settings.model_fields]
    keys = [*known, *sorted({key for each in settings for key in each} - set(known))]
    return [
        key
        for key in dict.fromkeys(keys)
        if len({json.dumps(each.get(key)) for each in settings}) > 1
    ]


def curve(group: Group, series: Sequence[Mapping[float, float]]) -> Curve:
    """Means over the runs of a group.

    Args:
        group: The group.
        series: For each of its runs, values by position; costs between two whole positions are
            interpolated.
    """
    positions = sorted(set().union(*series))
    having = {
        at: [(r, s[at]) for r, s in zip(group.runs, series, strict=True) if at in s]
        for at in positions
    }
    spent = {
        axis: np.array([fmean(_spent(run, axis, at) for run, _ in having[at]) for at in positions])
        for axis in AXES
        if all(axis in run.spent for run in group.runs)
    }
    values = [[value for _, value in having[at]] for at in positions]
    return Curve(
        position=np.array(positions, np.float64),
        mean=np.array([fmean(v) for v in values]),
        deviation=np.array([stdev(v) if len(v) > 1 else math.nan for v in values]),
        count=[len(v) for v in values],
        spent=spent,
    )


def windows(length: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that divides `length` rounds into at most `most`
    windows.
    """
    width = 1
    while length > most * width:
        width = int(width * (2.5 if str(width)[0] == "2" else 2))
    return width


def plus_minus(values: Sequence[float | None]) -> str | float | None:
    """The mean of the known values, with the sample deviation if there are several."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if len(known) < 2 or not (deviation := stdev(known)):
        return fmean(known) if known else None
    digits = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{fmean(known):,.{digits}f} ± {deviation:,.{digits}f}"


def _spent(run: Run, axis: str, position: float) -> float:
    totals = run.spent[axis]
    return float(np.interp(position, np.arange(len(totals)), totals))


def _names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """The method, and as many differing settings as needed to distinguish the groups."""
    settings = [members[0].settings for members in groups]
    keys = [key for key in differing(settings) if key not in ("method", "seed")]
    paths = [members[0].path for members in groups]
    names = [str(s.get("method", path)) for s, path in zip(settings, paths, strict=True)]
    for key in keys:
        if len(set(names)) == len(names):
            break
        words = [
            f"{name}, {key} {figure(s[key])}" if s.get(key) is not None else name
            for name, s in zip(names, settings, strict=True)
        ]
        if len(set(words)) > len(set(names)):
            names = words
    if len(set(names)) < len(names):
        names = [f"{name} ({path})" for name, path in zip(names, paths, strict=True)]
    return names
