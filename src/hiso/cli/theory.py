"""`hiso theory`: experiments that test the theory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json


def theory(
    preset: Annotated[
        Path, typer.Argument(help="TOML file of the experiment.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of results; by default runs/theory-PRESET.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test the theory by an experiment, or resume the experiment in the folder.

    Writes results.json, results.csv and pictures. Needs the extra `theory`.
    """
    from hiso.lab.theory.experiment import run_experiment

    folder = out or Path("runs") / f"theory-{preset.stem}"
    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        results = run_experiment(preset, folder, watcher)
    if as_json:
        print(json.dumps({**results, "folder": str(folder)}))
    else:
        display.experiment_tables(Console(), results)
        Console().print(f"results and pictures are in {folder}", highlight=False)
