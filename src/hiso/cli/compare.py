"""`hiso compare`: methods side by side, from one file."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hiso.cli.options import Json
from hiso.run.results import Summary

if TYPE_CHECKING:
    from hiso.lab.compare.execute import Failure
    from hiso.lab.compare.trials import Trial

_WIDE = 180
"""Line width, in characters, that is enough for all columns."""


def compare(
    file: Annotated[Path, typer.Argument(help="TOML file of a comparison.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for runs and results; default: runs/NAME.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; default: as many as fit.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list the runs.")] = False,
    as_json: Json = False,
) -> None:
    """Tune, run and compare methods, or resume; write tables and a report."""
    from hiso.lab.compare.spec import read_comparison

    comparison = read_comparison(file)
    if dry_run:
        _list(comparison, as_json)
        return
    from hiso.lab.compare.comparison import launch_comparison

    folder = out or Path("runs") / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["hiso", "compare", str(file)])
    try:
        with _Watch(Console(stderr=True), quiet=as_json) as watch:
            result = launch_comparison(
                comparison, folder, command=command, jobs=jobs, display=watch
            )
    except KeyboardInterrupt:
        print(
            "interrupted: finished runs and rounds are kept; start again to resume", file=sys.stderr
        )
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(result))
    else:
        _show(Console(), result, folder)


def _list(comparison: Any, as_json: bool) -> None:
    from hiso.lab.compare.trials import final_trials, tuning_trials

    tuning = list(tuning_trials(comparison))
    first = {(t.task, t.model, t.method): t.chosen for t in reversed(tuning)}
    final = list(final_trials(comparison, first))
    if as_json:
        names = {"tuning": [t.folder for t in tuning], "reporting": len(final)}
        print(json.dumps(names))
        return
    table = Table("", "run", "seed", "rounds", title=comparison.title, title_justify="left")
    for stage, trials in (("tuning", tuning), ("reporting", final)):
        for trial in trials:
            label = trial.label if stage == "tuning" else trial.method + ", as tuned"
            table.add_row(stage, label, str(trial.seed), str(trial.rounds))
    Console().print(table)


def _show(console: Console, result: Mapping[str, Any], folder: Path) -> None:
    from hiso.lab.compare import tables

    for place in tables.places(result["methods"]):
        header, cells = tables.comparison_table(tables.at(result["methods"], place))
        title = tables.heading(result["title"], place)
        shown = range(len(header)) if console.width >= _WIDE else tables.FIRST
        table = Table(*(header[i] for i in shown), title=title, title_justify="left")
        for row in cells:
            table.add_row(*(row[i] for i in shown))
        console.print(table)
    failed = sum(row["failed"] for row in result["methods"])
    if failed:
        console.print(f"[red]{failed} of the reported runs failed: their loss exploded[/]")
    console.print(f"tables, CSV, JSON and report in {folder}", highlight=False)


class _Watch:
    """A progress bar for the stage, and one for each active run."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._lines = not quiet and not console.is_terminal
        self._stage: TaskID | None = None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> _Watch:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, trials: Sequence[Trial], done: int) -> None:
        """See `Display.begin`."""
        if self._stage is not None:
            self._progress.remove_task(self._stage)
        self._stage = self._progress.add_task(what, total=len(trials), completed=done)

    def progress(self, running: dict[Trial, int]) -> None:
        """See `Display.progress`."""
        names = {trial.folder: (trial, rounds) for trial, rounds in running.items()}
        for name in self._bars.keys() - names.keys():
            self._progress.remove_task(self._bars.pop(name))
        for name, (trial, rounds) in names.items():
            if name not in self._bars:
                text = f"  {trial.label}, seed {trial.seed}"
                self._bars[name] = self._progress.add_task(text, total=trial.rounds)
            self._progress.update(self._bars[name], completed=rounds)

    def finished(self, trial: Trial, result: Summary | Failure) -> None:
        """See `Display.finished`."""
        if self._stage is not None:
            self._progress.advance(self._stage)
        said = "the loss exploded"
        if isinstance(result, Summary):
            after = result.metrics_after
            said = " ".join(f"{key} {after[key]:.4g}" for key in sorted(after))
        line = f"{trial.label}, seed {trial.seed}: {said}"
        if self._lines:
            print(line, file=sys.stderr, flush=True)
        else:
            self._progress.console.print(line, highlight=False)
