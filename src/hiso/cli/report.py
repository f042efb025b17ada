"""`hiso report`: pictures of runs in one HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json
from hiso.run.formatting import size


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option(help="The page's title; by default the runs' names.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a report of runs: curves, costs, scalars, clients, settings in one HTML file.

    Runs that differ only in the seed are shown together, with a band. A run may still be active.
    """
    from hiso.report.page import write_report

    names = [run.resolve().name for run in runs]
    words = ", ".join(names) if len(names) <= 3 else f"{len(names)} runs"
    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        done = write_report(runs, out, title=title or f"hiso: {words}", observer=watcher)
    if as_json:
        print(json.dumps(done))
        return
    groups = done["groups"]
    told = f"{sum(groups.values())} runs in {len(groups)} groups, {size(done['bytes'])}"
    Console().print(f"{done['report']}: {told}", highlight=False, markup=False, soft_wrap=True)
