"""Runs a comparison, and writes its tables and report."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hiso.errors import LoadError
from hiso.lab.compare import tables
from hiso.lab.compare.execute import Display, run_all
from hiso.lab.compare.figures import Run, choose, compare, read_runs
from hiso.lab.compare.picture import draw_curves
from hiso.lab.compare.spec import Comparison
from hiso.lab.compare.trials import final_trials, tuning_trials
from hiso.report.page import check_installed, write_report
from hiso.report.parts import Section, Table
from hiso.run.folder import write_text

RUNS = "runs"


def launch_comparison(
    comparison: Comparison, out: Path, *, command: str, jobs: int | None, display: Display
) -> dict[str, Any]:
    """Tunes, runs, and writes results.json, results.csv, results.md, report.html, curves.svg.

    Finished runs are not repeated: call this again after a stop, or with more seeds or methods in
    the file.

    Args:
        comparison: The comparison.
        out: The folder; each run has a run folder below `runs`.
        command: The command that started it, for results.json.
        jobs: Number of runs side by side; None for as many as fit.
        display: Receives the progress.

    Returns:
        The content of results.json.

    Raises:
        LoadError: The extra `report` is not installed; nothing was run.
        HisoError: A run failed for another reason than that its loss exploded.
    """
    check_installed()
    if find_spec("matplotlib") is None:
        raise LoadError("a comparison's picture needs matplotlib: pip install 'hiso[report]'")
    root = out / RUNS
    tuning = list(tuning_trials(comparison))
    tuned = run_all("tuning", tuning, root, comparison.threads, jobs, display)
    best, grid = choose(read_runs(tuning, tuned, root, comparison.metric), comparison.goal)
    final = list(final_trials(comparison, best))
    found = run_all("reporting", final, root, comparison.threads, jobs, display)
    runs = read_runs(final, found, root, comparison.metric)
    result = {
        "title": comparison.title,
        "command": command,
        "machine": machine(comparison.threads),
        "grid": grid,
        "methods": compare(runs, comparison),
        "comparison": comparison.model_dump(mode="json"),
    }
    write_text(out / "results.json", json.dumps(result, indent=1) + "\n")
    write_text(out / "results.csv", tables.to_csv(result))
    write_text(out / "results.md", tables.to_markdown(result))
    if any(run.curve for run in runs):
        _report(result, runs, root, out / "report.html")
        draw_curves(runs, comparison.metric, out / "curves.svg")
    return result


def machine(threads: int) -> dict[str, Any]:
    """A description of the machine, with the relevant versions."""
    return {
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("hiso", "torch", "numpy", "transformers")},
    }


def _report(result: dict[str, Any], runs: list[Run], root: Path, out: Path) -> None:
    """A page with the tables, and the curves of every reported run."""
    labels = {root / run.trial.folder: tables.heading("", run.key) for run in runs if run.curve}
    parts: list[Table] = []
    for place in tables.places(result["methods"]):
        here = tables.at(result["methods"], place)
        caption = tables.heading("Figures", place)
        parts.append(Table(*tables.comparison_table(here), caption))
        if tuned := tables.at(result["grid"], place):
            caption = tables.heading("The whole grid of tuning", place)
            parts.append(Table(*tables.grid_table(tuned), caption, folded=True))
    section = Section("Comparison", parts, " ".join(tables.notes(result["methods"])))
    write_report(list(labels), out, title=result["title"], labels=labels, extra=[section])
