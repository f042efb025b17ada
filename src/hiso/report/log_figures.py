"""Figures that need a ledger: the scalars, and the state that the method learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hiso.report.gather import Floats, Log, Run
from hiso.report.groups import Group, curve, windows
from hiso.report.parts import PALETTE, Figure, Section, View, area, line_style, numbers, outline
from hiso.report.standin import LARGEST, History

WINDOWS = 60
FAN = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
BLUES = [[0, "rgba(60,140,200,0)"], [1, "rgba(60,140,200,1)"]]
"""From transparent to blue, on any background."""
MEDIAN = {"color": PALETTE[1], "width": 2}
OUTER = {"color": PALETTE[1], "width": 1.5, "dash": "dot"}
ROUND = {"title": {"text": "round"}}


def scalars_section(groups: Sequence[Group], named: Mapping[str, Run]) -> Section | None:
    """The size and the distribution of the measured scalars; None without a ledger."""
    having = {name: run for name, run in named.items() if run.log and run.log.replies}
    if not having:
        return None
    width = windows(max(run.rounds for run in having.values()), WINDOWS)
    taken = {name: _windowed(run.log, width) for name, run in having.items() if run.log}
    sizes = _sizes(groups, {id(run): taken[name] for name, run in having.items()}, width)
    views = {name: _fan_view(values, width) for name, values in taken.items()}
    traces = [
        area(5, opacity) | {"name": name, "showlegend": True}
        for name, opacity in _FAN_BANDS.items()
    ]
    median = {"type": "scatter", "mode": "lines", "line": MEDIAN, "name": "median"}
    layout = {
        "xaxis": ROUND,
        "yaxis": {"title": {"text": "scalar g"}},
        "hovermode": "x unified",
        "showlegend": True,
    }
    fan = Figure(
        "Distribution of the scalars",
        [*traces, median | {"hovertemplate": "median %{y:.3~g}<br>%{text}<extra></extra>"}],
        layout,
        views,
        note=f"For the run selected above, in windows of {width} rounds."
        if width > 1
        else "For the run selected above.",
    )
    text = (
        "Each scalar g is a directional derivative of a client's loss, in loss per unit of "
        "the direction. Replies that were set aside are left out."
    )
    return Section("Scalars", [sizes, fan], text, list(views), "run")


_FAN_BANDS = {"1 to 99 %": 0.22, "5 to 95 %": 0.3, "25 to 75 %": 0.45}


def _windowed(log: Log, width: int) -> dict[int, Floats]:
    """The scalars of the used replies, by window."""
    found: dict[int, list[Any]] = {}
    for reply in log.replies:
        if reply.set_aside is None:
            found.setdefault(reply.round // width, []).append(reply.scalars.ravel())
    return {window: np.concatenate(parts).astype(np.float64) for window, parts in found.items()}


def _sizes(groups: Sequence[Group], taken: Mapping[int, dict[int, Floats]], width: int) -> Figure:
    """Root mean squares by group."""
    data: list[dict[str, Any]] = []
    for index, group in enumerate(groups):
        series = [
            {_middle(w, width): float(np.sqrt((g**2).mean())) for w, g in values.items()}
            for values in (taken.get(id(run), {}) for run in group.runs)
        ]
        if not any(series):
            continue
        line = curve(group, series)
        around = outline(line.position, line.mean - line.deviation, line.mean + line.deviation)
        common = {"type": "scatter", "legendgroup": group.label}
        data += [
            area(index) | common | {"x": around[0], "y": around[1]},
            common
            | {
                "name": group.label,
                "mode": "lines",
                "line": line_style(index),
                "x": numbers(line.position),
                "y": numbers(line.mean),
                "hovertemplate": "%{y:.3~g}",
            },
        ]
    layout = {
        "xaxis": ROUND,
        "yaxis": {"title": {"text": "root mean square of g"}},
        "hovermode": "x unified",
    }
    note = "Grows with the gradient's norm, and with the noise of a batch."
    return Figure("Size of the scalars", data, layout, log="xy", note=note)


def _fan_view(values: Mapping[int, Floats], width: int) -> View:
    order = sorted(values)
    x = np.array([_middle(window, width) for window in order])
    q = np.array([np.quantile(values[window], FAN) for window in order]).T
    areas = [outline(x, q[i], q[-1 - i]) for i in range(len(_FAN_BANDS))]
    texts = [
        f"half in {low:.3g} … {high:.3g}<br>90 % in {least:.3g} … {most:.3g}"
        for low, high, least, most in zip(q[2], q[4], q[1], q[5], strict=True)
    ]
    data = {
        "x": [*(xs for xs, _ in areas), numbers(x)],
        "y": [*(ys for _, ys in areas), numbers(q[3])],
        "text": [*[None for _ in areas], texts],
    }
    return View(data)


def _middle(window: int, width: int) -> float:
    return window * width + (width - 1) / 2


def state_section(histories: Mapping[str, History]) -> Section | None:
    """The learned state of weights, over time; None if no run has any."""
    if not histories:
        return None
    (name, *others) = dict.fromkeys(history.name for history in histories.values())
    title = " and ".join([name, *others])
    samples = sorted({history.sample for history in histories.values()})
    heat = {
        "type": "heatmap",
        "colorscale": BLUES,
        "zmin": 0,
        "colorbar": {"title": {"text": "% of weights", "side": "right"}, "thickness": 12},
        "hovertemplate": "round %{x}<br>" + name + " %{y:.3~g}<br>%{z:.2~g} % of weights"
        "<extra></extra>",
    }
    lines = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": label,
            "line": line,
            "hovertemplate": f"round %{{x}}<br>{label}: %{{y:.3~g}}<extra></extra>",
        }
        for label, line in (("5 %", OUTER), ("median", MEDIAN), ("95 %", OUTER))
    ]
    layout = {
        "xaxis": {"title": {"text": "round"}},
        "yaxis": {"title": {"text": name}, "type": "log"},
        "hovermode": "closest",
        "showlegend": True,
    }
    figure = Figure(
        f"Histogram of {title} along the run",
        [heat, *lines],
        layout,
        {label: _heat_view(history) for label, history in histories.items()},
        note="Darker: more of the weights. Lines: median, and the range of the middle 90 %.",
    )
    text = (
        "What the method has learned about each weight, in the selected run. It depends on the log "
        f"alone, and is rebuilt without the model for {' or '.join(f'{n:,}' for n in samples)} "
        f"weights: a sample, of {LARGEST:,} at most."
    )
    return Section(f"Learned diagonal {title}", [figure], text, list(histories), "run")


def _heat_view(history: History) -> View:
    percent = [[v or None for v in numbers(row * 100)] for row in history.share]
    started = history.share[:, history.position > 0]
    top = 100 * float(np.quantile(started.max(axis=0), 0.5)) if started.size else 100.0
    x = history.position.tolist()
    data: dict[str, list[Any]] = {
        "x": [x] * 4,
        "y": [numbers(history.edges), *(numbers(q) for q in history.quantiles)],
        "z": [percent, None, None, None],
        "zmax": [top, None, None, None],
    }
    return View(data)
