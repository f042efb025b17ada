"""The curves of a comparison as one picture, for pages that cannot run scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiso.lab.compare.figures import Run
from hiso.lab.compare.measure import Curve
from hiso.lab.compare.tables import heading
from hiso.report.parts import line_style
from hiso.run.formatting import size

_AXES = {"rounds": "positions", "bytes, up and down": "bytes", "forward passes": "passes"}
_TICK = {"bytes": lambda x: size(x).replace(".0 ", " "), "passes": lambda x: f"{x:,.0f}"}
_DASHED = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def draw_curves(runs: Sequence[Run], metric: str, out: Path) -> None:
    """Accuracy on the tuning split against rounds, bytes and passes: mean and deviation over seeds.

    One row of axes for each task and model. Bytes and passes have logarithmic axes, without
    position 0, whose cost is zero.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    places: dict[tuple[str, str], dict[str, list[Curve]]] = defaultdict(lambda: defaultdict(list))
    # A method has the same style in all rows, also if another method is missing.
    order = list(dict.fromkeys(run.trial.method for run in runs))
    for run in runs:
        if run.curve is not None:
            places[run.key[:2]][run.trial.method].append(run.curve)
    picture = Figure(figsize=(10, 3.2 * len(places)), layout="constrained")
    rows: Any = picture.subplots(len(places), len(_AXES), squeeze=False, sharey="row")
    for axes, (place, methods) in zip(rows, places.items(), strict=True):
        for axis, (name, attribute) in zip(axes, _AXES.items(), strict=True):
            for method, curves in methods.items():
                style = line_style(order.index(method))
                color, dash = style["color"], _DASHED[style["dash"]]
                start = 0 if attribute == "positions" else 1
                x = np.mean([getattr(curve, attribute)[start:] for curve in curves], axis=0)
                y = np.array([curve.accuracy[start:] for curve in curves])
                mean, deviation = y.mean(0), y.std(0, ddof=1) if len(y) > 1 else 0 * y[0]
                axis.plot(x, mean, dash, color=color, label=method)
                axis.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.15)
            if attribute != "positions":
                _logarithmic(axis, _TICK[attribute])
            axis.set_xlabel(name)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"{metric}, tuning split")
        axes[0].set_title(heading("", place), loc="left")
    lines = {line.get_label(): line for axes in rows for line in axes[0].lines}
    shown = [method for method in order if method in lines]
    picture.legend(
        [lines[m] for m in shown], shown, loc="outside lower center", ncols=4, frameon=False
    )
    with rc_context({"svg.hashsalt": "hiso", "svg.fonttype": "none"}):
        picture.savefig(out, metadata={"Date": None})


def _logarithmic(axis: Any, tick: Callable[[float], str]) -> None:
    """A logarithmic x axis with a few ticks, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
    axis.xaxis.set_minor_formatter(NullFormatter())
