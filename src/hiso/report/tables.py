"""What runs came to, what they cost, and what they were set to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from hiso.report.gather import Run, in_words, metric_names
from hiso.report.groups import Group, differing, plus_minus
from hiso.report.parts import Section, Table
from hiso.run.readable import figure, size


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
    unfinished = [run for run in runs if not run.summary]
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
        "Of a run; means over the runs of a group. Bytes are of all clients, and count 4 for each "
        "float32 that travels for the method's sake; the papers' count is 2·R·τ·P·4; FedAvg's is "
        "what float32 weights would take, up and down. Passes are clients' forward passes of one "
        "batch; a backward pass counts as two more."
    )
    return Section("Costs", [Table(header, rows)], text)


def _cost_cells(group: Group) -> Iterator[str | float | None]:
    costs = [_costs(run) for run in group.runs]
    yield group.label
    yield _span([run.rounds for run in group.runs])
    for key in ("bytes_up", "bytes_down", "paper_bytes", "fedavg_bytes"):
        yield _mean_size([cost.get(key) for cost in costs])
    passes = [cost["passes"] for cost in costs]
    yield None if None in passes else round(fmean(passes))
    yield plus_minus([cost.get("seconds_per_round") for cost in costs])
    yield plus_minus([cost.get("forward_seconds_per_round") for cost in costs])
    yield _mean_size([cost.get("peak_memory_bytes") for cost in costs])


def _costs(run: Run) -> Mapping[str, Any]:
    """Figures of summary.json, or as far as the rounds tell them."""
    passes = run.spent.get("passes")
    told = {"passes": None if passes is None else int(passes[-1])}
    if run.summary:
        up, down = (run.summary.get(f"fedavg_bytes_{way}") for way in ("up", "down"))
        told["fedavg_bytes"] = None if up is None or down is None else up + down
        return {**run.summary, **told}
    up, down = run.traffic
    seconds = run.seconds[np.isfinite(run.seconds)]
    return told | {
        "bytes_up": up,
        "bytes_down": down,
        "paper_bytes": None if run.log is None else run.log.paper_bytes,
        "seconds_per_round": float(np.median(seconds)) if seconds.size else None,
    }


def _mean_size(counts: Sequence[float | None]) -> str | None:
    known = [count for count in counts if count is not None]
    return size(fmean(known)) if known else None


def settings_section(groups: Sequence[Group], named: Mapping[str, Run]) -> Section:
    """Settings that differ; all of them, changes on the way, and facts of each run on demand."""
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
        parts.append(Table(header, changes, "Changed on the way"))
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
    """Where each run lies, and what identifies it."""
    header = ["run", "folder", "seed", "rounds", "weights", "data", "digest", "run id", "machine"]
    rows: list[list[str | float | None]] = []
    for name, run in named.items():
        s = run.summary
        machine = ", ".join(f"{k} {v}" for k, v in s.get("machine", {}).items())
        row = [name, str(run.path), run.settings.get("seed"), run.rounds]
        row += [s.get(key) for key in ("trainable_weights", "data", "digest", "run")]
        rows.append([*row, machine or None])
    return Table(header, rows, "Each run", folded=True)
