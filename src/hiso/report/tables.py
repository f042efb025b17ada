"""Tables of the results, costs and settings of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from hiso.report.gather import Run, in_words, metric_names
from hiso.report.groups import Group, differing, plus_minus
from hiso.report.parts import Section, Table
from hiso.run.formatting import figure, size


def results_section(groups: Sequence[Group]) -> Section:
    """Metrics at the start and at the end, and the best on the tuning split, by group."""
    runs = [run for group in groups for run in group.runs]
    names = metric_names(runs)
    words = [in_words(name) for name in names]
    header = ["group"]
    for word in words:
        header += [f"test {word} before", f"test {word} after", f"best tuning {word}"]
    rows = [
        [group.label]
        + [cell for name in names for cell in _metric_cells(group, name)]
        + [_span([run.rounds for run in group.runs]), len(group.runs), group.seeds]
        for group in groups
    ]
    unfinished = [run for run in runs if run.summary is None]
    text = "Means over the runs of a group ± sample deviation." if len(runs) > len(groups) else ""
    if unfinished:
        text += " Not at its end: " if len(unfinished) == 1 else " Not at their end: "
        text += ", ".join(f"{run.path.name} ({_progress(run)})" for run in unfinished) + "."
    return Section("Results", [Table([*header, "rounds", "runs", "seeds"], rows)], text.strip())


def _metric_cells(group: Group, name: str) -> Iterator[str | float | None]:
    series = [run.metric("test", name) for run in group.runs]
    yield plus_minus([values.get(0) for values in series])
    yield plus_minus([values[max(values)] if max(values, default=0) else None for values in series])
    best = min if name == "loss" else max
    tuning = [run.metric("dev", name).values() for run in group.runs]
    yield plus_minus([best(values) if values else None for values in tuning])


def _progress(run: Run) -> str:
    planned = run.settings.get("rounds")
    return f"{run.rounds} rounds" if planned is None else f"{run.rounds} of {planned} rounds"


def _span(values: Sequence[int]) -> str | int:
    least, most = min(values), max(values)
    return least if least == most else f"{least:,} – {most:,}"


def costs_section(groups: Sequence[Group]) -> Section:
    """Bytes, passes, time and memory by group."""
    header = ["group", "rounds", "bytes up", "bytes down", "the papers' count"]
    header += ["FedAvg's bytes", "forward passes", "seconds a round", "of these forward"]
    header += ["peak memory"]
    rows = [list(_cost_cells(group)) for group in groups]
    text = (
        "Of a run; means over the runs of a group. Bytes are of all clients, and count 4 for "
        "each float32 that the method sends; the papers' count is 2·R·τ·P·4; FedAvg's is "
        "what float32 weights would take, up and down. Passes are clients' forward passes of one "
        "batch; a backward pass counts as two more."
    )
    return Section("Costs", [Table(header, rows)], text)


@dataclass(frozen=True)
class _Costs:
    """The costs of a run, as far as they are known."""

    bytes_up: int
    bytes_down: int
    paper_bytes: int | None
    fedavg_bytes: int | None
    passes: int | None
    seconds: float | None
    forward_seconds: float | None
    peak_memory: int | None


def _cost_cells(group: Group) -> Iterator[str | float | None]:
    costs = [_costs(run) for run in group.runs]
    yield group.label
    yield _span([run.rounds for run in group.runs])
    yield _mean_size([cost.bytes_up for cost in costs])
    yield _mean_size([cost.bytes_down for cost in costs])
    yield _mean_size([cost.paper_bytes for cost in costs])
    yield _mean_size([cost.fedavg_bytes for cost in costs])
    passes = [cost.passes for cost in costs if cost.passes is not None]
    yield round(fmean(passes)) if len(passes) == len(costs) else None
    yield plus_minus([cost.seconds for cost in costs])
    yield plus_minus([cost.forward_seconds for cost in costs])
    yield _mean_size([cost.peak_memory for cost in costs])


def _costs(run: Run) -> _Costs:
    """The costs from the summary, or from the rounds as far as possible."""
    told = run.spent.get("passes")
    passes = None if told is None else int(told[-1])
    if (s := run.summary) is not None:
        fedavg = s.fedavg_bytes_up + s.fedavg_bytes_down
        seconds = s.seconds_per_round, s.forward_seconds_per_round
        return _Costs(
            s.bytes_up, s.bytes_down, s.paper_bytes, fedavg, passes, *seconds, s.peak_memory_bytes
        )
    seconds = run.seconds[np.isfinite(run.seconds)]
    median = float(np.median(seconds)) if seconds.size else None
    paper = None if run.log is None else run.log.paper_bytes
    return _Costs(*run.traffic, paper, None, passes, median, None, None)


def _mean_size(counts: Sequence[float | None]) -> str | None:
    known = [count for count in counts if count is not None]
    return size(fmean(known)) if known else None


def settings_section(groups: Sequence[Group], named: Mapping[str, Run]) -> Section:
    """Settings that differ; on demand, all settings, changes and facts of each run."""
    settings = [group.settings for group in groups]
    keys = differing(settings)
    parts: list[Table] = []
    text = "All groups have the same settings." if len(groups) > 1 else ""
    if keys:
        rows = [[g.label, *(_cell(g.settings.get(key)) for key in keys)] for g in groups]
        parts.append(Table(["group", *keys], rows, "What differs"))
        text = ""
    if changes := list(_changes(named)):
        header = ["run", "from round", "setting", "before", "after"]
        parts.append(Table(header, changes, "Changed during the run"))
    every = list(dict.fromkeys(key for s in settings for key in s))
    labels = [group.label for group in groups]
    rows = [[key, *(_cell(s.get(key)) for s in settings)] for key in every]
    parts.append(Table(["setting", *labels], rows, "All settings", folded=True))
    parts.append(_facts(named))
    return Section("Settings", parts, text)


def _cell(value: Any) -> str | float | None:
    return value if value is None or type(value) in (int, float) else figure(value)


def _changes(named: Mapping[str, Run]) -> Iterator[list[str | float | None]]:
    for name, run in named.items():
        for change in run.log.changes if run.log else []:
            yield [name, change.position, change.key, _cell(change.old), _cell(change.new)]


def _facts(named: Mapping[str, Run]) -> Table:
    """The folder and the identifiers of each run."""
    header = ["run", "folder", "seed", "rounds", "weights", "data", "digest", "run id", "machine"]
    rows: list[list[str | float | None]] = []
    for name, run in named.items():
        row = [name, str(run.path), run.settings.get("seed"), run.rounds]
        if (s := run.summary) is None:
            rows.append([*row, None, None, None, None, None])
            continue
        machine = ", ".join(f"{key} {value}" for key, value in s.machine.items())
        rows.append([*row, s.trainable_weights, s.data, s.digest, s.run, machine or None])
    return Table(header, rows, "Each run", folded=True)
