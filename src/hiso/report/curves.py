"""Curves of loss and metrics against rounds, bytes and forward passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hiso.report.gather import Run, in_words, metric_names
from hiso.report.groups import AXES, Curve, Group, curve, windows
from hiso.report.parts import Figure, Section, View, area, line_style, numbers, outline

POINTS = 120
CHOICES = {
    "rounds": ("Rounds", "rounds", "", "", ",.1~f"),
    "bytes": ("Bytes", "bytes sent so far, up and down, all clients", "B", "~s", ".3~s"),
    "passes": ("Forward passes", "clients' forward passes of one batch so far", "", "~s", ",.0f"),
}
"""For each axis: name of the choice, title, unit, format of ticks and of hover values."""

Trace = tuple[Curve, dict[str, Any]]
"""A curve and its trace: a band if the trace is filled, otherwise the means."""


def curves_section(groups: Sequence[Group]) -> Section | None:
    """Curves with bands over seeds; None if there are no evaluations and no rounds."""
    figures = [*_metrics(groups), *_training(groups)]
    if not figures:
        return None
    known = [axis for axis in AXES if any(axis in run.spent for g in groups for run in g.runs)]
    text = ""
    if any(len(group.runs) > 1 for group in groups):
        text = (
            "Lines are means over the runs of a group that have reached this point, bands the "
            "mean ± sample "
            "deviation."
        )
    if "passes" in known and (without := _without_passes(groups)):
        text += f" Forward passes are not known of: {', '.join(without)}."
    choices = [CHOICES[axis][0] for axis in known]
    return Section("Curves", figures, text.strip(), choices=choices, choice="x axis")


def _without_passes(groups: Sequence[Group]) -> list[str]:
    return [g.label for g in groups if not all("passes" in run.spent for run in g.runs)]


def _metrics(groups: Sequence[Group]) -> Iterator[Figure]:
    """A figure for each metric of the tuning and test splits, the loss last."""
    for name in metric_names([run for group in groups for run in group.runs]):
        traces: list[Trace] = []
        for index, group in enumerate(groups):
            for split, words in (("dev", "tuning"), ("test", "test")):
                series = [run.metric(split, name) for run in group.runs]
                if any(series):
                    line = curve(group, series)
                    style = _line(index) if split == "dev" else _marks(index, line)
                    style["name"] = f"{group.label}, {words}"
                    traces += _traces(index, group.label, line, style)
        title = in_words(name)
        yield _figure(
            f"{title[0].upper()}{title[1:]}",
            title,
            traces,
            log="xy" if name == "loss" else "x",
            note="Lines: tuning split. Diamonds: test split.",
        )


def _training(groups: Sequence[Group]) -> Iterator[Figure]:
    """The loss of the rounds' own batches."""
    runs = [run for group in groups for run in group.runs]
    width = windows(max(run.rounds for run in runs), POINTS)
    traces: list[Trace] = []
    for index, group in enumerate(groups):
        series = [_windowed(run, width) for run in group.runs]
        if any(series):
            style = _line(index) | {"name": group.label}
            traces += _traces(index, group.label, curve(group, series), style)
    if traces:
        note = "Mean loss of the round's clients on their batches, before the round's step"
        note += f"; means over {width} rounds." if width > 1 else "."
        yield _figure("Training loss", "loss", traces, log="xy", note=note)


def _windowed(run: Run, width: int) -> dict[float, float]:
    """Means of the loss over windows of rounds, by the middle of the window."""
    means: dict[float, float] = {}
    for start in range(0, run.rounds, width):
        known = np.flatnonzero(np.isfinite(run.loss[start : start + width])) + start
        if known.size:
            middle = (start + min(start + width, run.rounds) - 1) / 2
            means[middle] = float(run.loss[known].mean())
    return means


def _line(index: int) -> dict[str, Any]:
    return {"mode": "lines", "line": line_style(index)}


def _marks(index: int, line: Curve) -> dict[str, Any]:
    marker = {"symbol": "diamond", "size": 9, "color": line_style(index)["color"]}
    bars = {"type": "data", "array": numbers(line.deviation), "thickness": 1.5, "width": 4}
    return {"mode": "markers", "marker": marker, "error_y": bars}


def _traces(index: int, label: str, line: Curve, style: dict[str, Any]) -> Iterator[Trace]:
    """A line with a band; single marks have error bars."""
    common = {"type": "scatter", "legendgroup": label}
    if style["mode"] == "lines":
        yield line, area(index) | common
    yield line, common | style


def _figure(title: str, y: str, traces: Sequence[Trace], *, log: str, note: str) -> Figure:
    """A figure with bands drawn first, so that no band covers a line."""
    ordered = sorted(traces, key=lambda trace: "fill" not in trace[1])
    data = [trace | _values(line, trace) for line, trace in ordered]
    views: dict[str, View] = {}
    for axis, (name, words, unit, ticks, value) in CHOICES.items():
        xs = [_places(line, trace, axis) for line, trace in ordered]
        if any(xs):
            formats = {"xaxis.ticksuffix": unit, "xaxis.tickformat": ticks}
            formats |= {"xaxis.hoverformat": value, "xaxis.title.text": words}
            views[name] = View({"x": xs}, formats)
    layout = {"yaxis": {"title": {"text": y}}, "hovermode": "x unified"}
    return Figure(title, data, layout, views, log, note)


def _values(line: Curve, trace: Mapping[str, Any]) -> dict[str, Any]:
    low, high = line.mean - line.deviation, line.mean + line.deviation
    if "fill" in trace:
        return {"y": outline(line.position, low, high)[1]}
    several = max(line.count) > 1
    texts = [
        f" ± {deviation:.3g} ({count} runs)" if count > 1 else " (1 run)" if several else ""
        for deviation, count in zip(line.deviation, line.count, strict=True)
    ]
    return {"y": numbers(line.mean), "text": texts, "hovertemplate": "%{y:.4~g}%{text}"}


def _places(line: Curve, trace: Mapping[str, Any], axis: str) -> list[Any]:
    """The positions of a curve's points on an axis; empty if they are not known."""
    if (spent := line.spent.get(axis)) is None:
        return []
    low, high = line.mean - line.deviation, line.mean + line.deviation
    return outline(spent, low, high)[0] if "fill" in trace else numbers(spent)
