"""The parts of a page: sections of tables and figures, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hiso.report.gather import Floats

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
"""Okabe and Ito's colours, which can be distinguished with most kinds of colour-blindness. Grey
replaces black and yellow, which are hard to see on a dark or a light page."""
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Table:
    """A table. Numbers are formatted by `hiso.run.formatting.figure`; None is shown as –.

    Attributes:
        header: Names of the columns. The first column names the row.
        rows: Cells; each row has as many as the header.
        caption: A short description.
        folded: Shown only when its caption is opened.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str | float | None]]
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class View:
    """The form of a figure for one choice of its section, as arguments of `Plotly.update`.

    Attributes:
        data: Attributes of traces, each with one value per trace of the figure.
        layout: Attributes of the layout, with dots: "xaxis.title.text".
    """

    data: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Any])
    layout: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Figure:
    """A Plotly figure.

    Attributes:
        title: What it shows.
        data: Traces. The page's legend shows and hides traces whose `legendgroup` is a group's
            name.
        layout: Axes and other layout; the page adds fonts, colours and margins.
        views: For each choice of the section, the differences. A choice without a view shows
            nothing.
        log: Axes that may be logarithmic: "", "x", "y" or "xy".
        note: How to read it.
    """

    title: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    views: Mapping[str, View] = field(default_factory=dict[str, View])
    log: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        parts: Tables and figures, in order.
        text: An introduction to the tables and figures.
        choices: Names of views; the reader selects one for all figures of the section.
        choice: What the reader selects, such as "x axis" or "run".
    """

    title: str
    parts: Sequence[Table | Figure]
    text: str = ""
    choices: Sequence[str] = ()
    choice: str = ""


def line_style(index: int) -> dict[str, Any]:
    """The `line` of a trace of the group with this index: 28 pairs of colour and dash."""
    return {"color": PALETTE[index % len(PALETTE)], "dash": DASHES[index % len(DASHES)], "width": 2}


def shade(index: int, opacity: float = 0.18) -> str:
    """The group's colour for areas."""
    red, green, blue = (int(PALETTE[index % len(PALETTE)][i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def numbers(values: Floats | Sequence[float | None]) -> list[float | None]:
    """Each value rounded to six digits; None for None and for values that are not finite."""
    array = np.asarray(values, np.float64)
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in array]


def outline(x: Floats, low: Floats, high: Floats) -> tuple[list[Any], list[Any]]:
    """(x, y) of the closed line around an area, where its values are known; gaps split the
    line.
    """
    xs: list[Any] = []
    ys: list[Any] = []
    known = np.isfinite(low) & np.isfinite(high)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]])))
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        here = slice(start, stop)
        there = x[here]
        xs += [*numbers(there), *numbers(there[::-1]), None]
        ys += [*numbers(low[here]), *numbers(high[here][::-1]), None]
    return xs, ys


def area(index: int, opacity: float = 0.18) -> dict[str, Any]:
    """A trace that fills an outline."""
    return {
        "type": "scatter",
        "mode": "lines",
        "fill": "toself",
        "fillcolor": shade(index, opacity),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
