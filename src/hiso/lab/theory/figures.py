"""Pictures of the experiments as small SVG files that are readable in grey."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from hiso.lab.theory.curvature.learned import scatter, step_noise

_LOOK = {
    "zo_sgd": ("#0072B2", "o", "DeComFL (zo_sgd)"),
    "hiso": ("#D55E00", "s", "HiSo"),
    "oracle": ("#009E73", "^", "oracle, floored"),
    "oracle_sqrt": ("#CC79A7", "v", "oracle √, floored"),
    "newton": ("#000000", "D", "oracle, no floor"),
}
"""Colour (Okabe and Ito, safe for the colour-blind), marker and name of each method."""


@contextmanager
def _figure(path: Path, width: float, height: float, count: int) -> Iterator[list[Axes]]:
    """Axes side by side, saved as an SVG file whose bytes do not depend on time or process."""
    with matplotlib.rc_context({"svg.hashsalt": "hiso", "font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield list(np.atleast_1d(figure.subplots(1, count)))
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_dimension(results: dict[str, Any], folder: Path) -> None:
    """dimension.svg: rounds against d, measured and expected."""
    rows = results["rows"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    with _figure(folder / "dimension.svg", 2.9 * len(problems), 3.3, len(problems)) as axes:
        for ax, problem in zip(axes, problems, strict=True):
            mine = [row for row in rows if row["problem"] == problem]
            _races(ax, mine)
            ax.set_title(problem)
            ax.set_xlabel("weights d")
        axes[0].set_ylabel("rounds to the target")


def _races(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for method in dict.fromkeys(row["method"] for row in rows):
        colour, marker, name = _LOOK[method]
        mine = [row for row in rows if row["method"] == method]
        reached = [row for row in mine if row["median"] is not None]
        d = [row["d"] for row in reached]
        middle = np.array([row["median"] for row in reached], float)
        counts = [[count for count in row["rounds"] if count is not None] for row in reached]
        low, high = (np.array([end(c) for c in counts], float) for end in (min, max))
        ax.errorbar(d, middle, [middle - low, high - middle], color=colour, marker=marker,
                    markersize=4, linewidth=1, capsize=2, label=name)  # fmt: skip
        known = [row for row in mine if row["expected"] is not None]
        ax.plot([row["d"] for row in known], [row["expected"] for row in known],
                color=colour, linestyle=":", linewidth=1)  # fmt: skip
    start = min((row["median"] for row in rows if row["median"] is not None), default=1)
    ends = np.array([min(row["d"] for row in rows), max(row["d"] for row in rows)], float)
    ax.set_xscale("log")
    ax.set_yscale("log")
    bottom, top = ax.get_ylim()
    ax.plot(ends, start * ends / ends[0], color="0.6", linestyle="--", linewidth=0.8,
            label="∝ d")  # fmt: skip
    kappa = np.array([row["kappa"] for row in rows])
    if np.ptp(kappa) < 1e-6 * kappa.max():
        ax.plot(ends, [start, start], color="0.6", linestyle="-.", linewidth=0.8, label="∝ κ")
    ax.set_ylim(bottom / 1.5, top * 3)
    ax.legend(fontsize=7, frameon=False)


def draw_curvature(results: dict[str, Any], folder: Path) -> None:
    """curvature.svg: h in a run, and the spread and rank correlation of the stationary h."""
    with _figure(folder / "curvature.svg", 9.5, 3.2, 3) as (during, spread, seen):
        _during(during, results["rows"])
        standing = results["standing"]
        nu = np.array([cell["nu"] for cell in standing])
        for cell in standing:
            spread.plot(cell["nu"], cell["h_spread"], "o", color="#D55E00", markersize=4)
            spread.plot(cell["nu"], cell["h_spread_other_seed"], "x", color="0.5", markersize=4)
        if len(nu):
            line = np.geomspace(nu.min(), nu.max(), 30)
            for p in sorted({cell["directions"] for cell in standing}):
                spread.plot(line, [scatter(x, step_noise(p)) for x in line], linewidth=0.8,
                            label=f"expected, P = {p}")  # fmt: skip
            spread.set_xscale("log")
            spread.set_yscale("log")
            spread.xaxis.set_minor_formatter(NullFormatter())
            spread.legend(fontsize=7, frameon=False)
        spread.set_xlabel("smoothing ν")
        spread.set_title("spread of h at rest (×: other seed)")
        _seen(seen, standing)


def _during(ax: Axes, rows: list[dict[str, Any]]) -> None:
    kinds = {
        "rho_second_moment": ("E ĝ²", "o", "#D55E00"),
        "rho_gauss_newton": ("Gauss–Newton", "s", "#0072B2"),
        "rho_hessian": ("|Hessian|", "^", "#009E73"),
        "rho_other_seed": ("E ĝ², other seed", "x", "0.5"),
    }
    x = [row["position"] for row in rows]
    chance = rows[0]["rho_chance"] if rows else 0
    ax.axhspan(-2 * chance, 2 * chance, color="0.9", label="2 sd of chance")
    for key, (name, marker, colour) in kinds.items():
        ax.plot(x, [row[key] for row in rows], marker=marker, color=colour, markersize=4,
                linewidth=1, label=name)  # fmt: skip
    ax.set_ylim(-0.3, 1)
    ax.set_xlabel("rounds")
    ax.set_title("rank correlation of h with …")
    ax.legend(fontsize=7, frameon=False)


def _seen(ax: Axes, standing: list[dict[str, Any]]) -> None:
    for kind, name, colour in (
        ("rho_second_moment", "E ĝ²", "#D55E00"),
        ("rho_gauss_newton", "Gauss–Newton", "#0072B2"),
    ):
        key = "rho_expected" if kind == "rho_second_moment" else f"{kind}_expected"
        ax.errorbar(
            [cell[key] for cell in standing],
            [cell[kind] for cell in standing],
            [cell["rho_error"] for cell in standing],
            fmt="o", color=colour, markersize=4, capsize=2, label=name,
        )  # fmt: skip
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    ax.set_xlabel("expected")
    ax.set_title("rank correlation of h at rest")
    ax.legend(fontsize=7, frameon=False)


def draw_language(results: dict[str, Any], folder: Path) -> None:
    """language.svg: expected progress with an oracle's h over that with h = 1, where known."""
    table = [row for row in results["oracles"] if row["ratio"] is not None]
    groups = list(dict.fromkeys((row["position"], row["weights"]) for row in table))
    with _figure(folder / "language.svg", 1 + 2.6 * len(groups), 3.2, max(1, len(groups))) as axes:
        for ax, (position, weights) in zip(axes, groups, strict=True):
            mine = [
                row for row in table if (row["position"], row["weights"]) == (position, weights)
            ]
            names = [
                row["h"] if row["h"] == "block" else f"{row['h']}, floor {row['floor']:g}"
                for row in mine
            ]
            ax.barh(names, [row["ratio"] for row in mine], color="#0072B2",
                    xerr=[row["error"] for row in mine], capsize=2)  # fmt: skip
            ax.axvline(1, color="0.4", linewidth=0.8)
            ax.invert_yaxis()
            ax.set_title(f"round {position}, {weights}", fontsize=9)
            ax.tick_params(axis="y", labelsize=7, labelleft=ax is axes[0])
        axes[0].set_xlabel("progress over plain ZO-SGD's")


def draw_oracle(results: dict[str, Any], folder: Path) -> None:
    """oracle.svg: mean test accuracy against rounds with each candidate for H."""
    names = {
        "one": ("1 (DeComFL)", "#0072B2"),
        "hiso": ("learned (HiSo)", "#D55E00"),
        "gauss_newton": ("Gauss–Newton diagonal", "#009E73"),
        "gauss_newton_sqrt": ("its root", "#CC79A7"),
        "second_moment_sqrt": ("√ E ĝ²", "#000000"),
    }
    every = results["preset"]["look_every"]
    with _figure(folder / "oracle.svg", 5, 3.4, 1) as (ax,):
        for candidate, accuracies in results["curves"].items():
            name, colour = names[candidate]
            ax.plot(every * np.arange(len(accuracies)), accuracies, color=colour, linewidth=1.2,
                    label=name)  # fmt: skip
        ax.set_xlabel("rounds")
        ax.set_ylabel("accuracy, test split")
        ax.legend(fontsize=7, frameon=False, title="H", title_fontsize=7)


DRAW = {
    "dimension": draw_dimension,
    "curvature": draw_curvature,
    "language": draw_language,
    "oracle": draw_oracle,
}
