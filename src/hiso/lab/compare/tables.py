"""A comparison's figures as Markdown, CSV and table cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from hiso.run.formatting import size

_COLUMNS = (
    "method", "tuned", "rounds to target", "bytes to target", "passes to target", "best",
    "test", "loss", "test loss", "at equal bytes", "at equal passes", "bytes in all",
    "passes in all",
)  # fmt: skip
FIRST = (0, 1, 2, 3, 5, 6, 8)
"""The most important columns, for narrow displays."""
_GRID = ("method", "values", "accuracy", "loss", "failed", "")


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells for rows of `figures.compare` with the same task and model."""
    return list(_COLUMNS), [
        [
            row["method"] + _exploded(row),
            values(row["values"]),
            *(
                _to_target(row, row["to_target"][name], show)
                for name, show in (("rounds", _count), ("bytes", size), ("passes", _count))
            ),
            *(figure(row[name], percent) for name in ("best", "test")),
            *(figure(row[name], _loss) for name in ("loss", "test_loss")),
            *(figure(row[name], percent) for name in ("at_equal_bytes", "at_equal_passes")),
            figure(row["bytes"], size),
            figure(row["passes"], _count),
        ]
        for row in rows
    ]


def grid_table(grid: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the whole grid."""
    return list(_GRID), [
        [
            row["method"],
            values(row["values"]),
            percent(row["accuracy"]) if "accuracy" in row else "",
            f"{row['loss']:.4f}" if "loss" in row else "",
            str(row["failed"] or ""),
            "chosen" if row["chosen"] else "",
        ]
        for row in grid
    ]


def places(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The different (task, model) of rows, in order."""
    return list(dict.fromkeys((row["task"], row["model"]) for row in rows))


def at(rows: Sequence[Mapping[str, Any]], place: tuple[str, str]) -> list[Mapping[str, Any]]:
    """The rows of one (task, model)."""
    return [row for row in rows if (row["task"], row["model"]) == place]


def heading(title: str, labels: tuple[str, ...]) -> str:
    """A title with the labels of task, model and method; empty labels are left out."""
    return " · ".join(filter(None, (title, *labels)))


def notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Explanations of the columns, for each task and model of the rows."""
    said = [
        "Best, loss, and accuracies at equal cost are on the tuning split; loss, test and test "
        "loss are at the end."
    ]
    for place in places(rows):
        row = at(rows, place)[0]
        budget, where = row["budget"], heading("", place)
        said += [f"{where}:"] if where else []
        if row["target"] is not None:
            by_loss = row["goal"] == "last loss"
            target = f"a loss of {_loss(row['target'])}" if by_loss else percent(row["target"])
            said.append(f"Target: {target} on the tuning split.")
        said.append(f"Equal bytes: {size(budget['bytes'])}.")
        said.append(f"Equal passes: {_count(budget['passes'])}.")
        said.append(f"Mean ± deviation over seeds {', '.join(map(str, row['seeds']))}.")
    return said


def to_markdown(result: Mapping[str, Any]) -> str:
    """The whole result as a page."""
    parts = [f"# {result['title']}\n"]
    rows, grid = result["methods"], result["grid"]
    for place in places(rows):
        here = at(rows, place)
        text = " ".join(notes(here)) + "\n"
        parts += [f"## {heading('Results', place)}\n", text, _markdown(*comparison_table(here))]
        if tuned := at(grid, place):
            parts += [f"## {heading('Tuning', place)}\n", _markdown(*grid_table(tuned))]
    machine = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    parts.append(f"{machine}. Command: `{result['command']}`.\n")
    return "\n".join(parts)


def to_csv(result: Mapping[str, Any]) -> str:
    """One line for each method and figure, with every seed's value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "model", "method", "values", "figure", "mean", "deviation", "by seed"])
    for row in result["methods"]:
        flat = {**row, **{f"{name}_to_target": v for name, v in row["to_target"].items()}}
        for name, value in flat.items():
            if isinstance(value, dict) and "deviation" in value:
                by_seed = " ".join(str(v) for v in value["values"])
                who = row["task"], row["model"], row["method"], values(row["values"])
                writer.writerow([*who, name, value["mean"], value["deviation"], by_seed])
    return out.getvalue()


def _markdown(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def values(chosen: Mapping[str, float]) -> str:
    """`lr 0.01`."""
    return ", ".join(f"{key} {value:g}" for key, value in chosen.items())


def figure(value: Mapping[str, Any], show: Any) -> str:
    """Mean ± deviation."""
    if value["mean"] is None:
        return "–"
    text = show(value["mean"])
    return text if value["deviation"] is None else f"{text} ± {show(value['deviation'])}"


def _exploded(row: Mapping[str, Any]) -> str:
    """The number of exploded runs, which the figures do not include."""
    return f" ({row['failed']} of {len(row['seeds'])} exploded)" if row["failed"] else ""


def _to_target(row: Mapping[str, Any], value: Mapping[str, Any], show: Any) -> str:
    if row["target"] is None:
        return "–"
    runs = len(row["seeds"])
    if not row["reached"]:
        return f"not reached (0/{runs})"
    missing = "" if row["reached"] == runs else f" ({row['reached']}/{runs})"
    return figure(value, show) + missing


def _loss(value: float) -> str:
    return f"{value:.3f}"


def percent(value: float) -> str:
    """0.8215 as 82.2 %."""
    return f"{100 * value:.1f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"
