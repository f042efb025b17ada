"""The commands; the only place where errors become messages and exit codes."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from hiso.cli import display, worker
from hiso.cli.backup import backup
from hiso.cli.compare import compare
from hiso.cli.export import apply, diff, export
from hiso.cli.options import (
    Changes,
    Json,
    LabelColumn,
    Rollback,
    SettingsFile,
    TextColumn,
    merge_file,
    parse_change,
    with_columns,
    with_settings,
)
from hiso.cli.predict import predict
from hiso.cli.report import report
from hiso.cli.serve import Superlink, count_right, serve
from hiso.cli.theory import theory
from hiso.cli.watch import watch
from hiso.errors import (
    DISK_ERRORS,
    Diverged,
    HisoError,
    ProtocolError,
    RunConflict,
    SettingsError,
    StorageError,
)
from hiso.run.settings import CHANGEABLE

Folder = Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Federated fine-tuning of language models that sends numbers, not tensors.",
)
app.command()(compare)
app.command()(serve)
app.command()(watch)
app.command()(backup)
app.command()(report)
app.command()(export)
app.command()(apply)
app.command()(diff)
app.command()(predict)
app.command()(theory)
app.add_typer(worker.app, name="worker")


@app.command()
@with_settings
def run(
    settings: dict[str, Any],
    file: SettingsFile = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; by default runs/MODEL-TASK-METHOD-SEED.")
    ] = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    change: Changes = None,
    rollback: Rollback = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume an existing run; fail if there is none.")
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TRACKER",
            help="Also send figures to tensorboard, wandb, mlflow or trackio; repeatable.",
            show_default=False,
        ),
    ] = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Estimate time and memory by a timed pass; run and write nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Fine-tune across clients, or resume the run in the folder.

    Flags override the TOML file, whose keys are the flags' names with underscores.
    """
    from hiso.run.folder import RunFolder
    from hiso.run.observer import Several
    from hiso.run.results import encode_summary
    from hiso.run.settings import parse_settings
    from hiso.run.track import Tracker

    given, named = merge_file(file, settings)
    given = with_columns(given, text_column, label_column)
    folder = out or named
    if folder is None:
        s = parse_settings(given)
        model = Path(s.model).name.removesuffix(".gguf")
        task = s.task.rpartition(":")[2]
        folder = Path("runs") / f"{model}-{task}-{s.make_method().name}-{s.seed}"
    if resume and not RunFolder(folder).has_run():
        raise typer.BadParameter(f"{folder} holds no run", param_hint="--resume")
    changes = dict(parse_change(text) for text in change or [])
    trackers = [Tracker(name, folder) for name in dict.fromkeys(track or [])]
    from hiso.run.launch import (
        estimate_run,
        launch,
    )  # loads torch, so only after the checks

    try:
        with ExitStack() as stack:
            watcher = stack.enter_context(display.Watcher(Console(stderr=True), quiet=as_json))
            if estimate:
                found = estimate_run(
                    given, folder, changes=changes, rollback=rollback, observer=watcher
                )
                print(json.dumps(asdict(found)) if as_json else display.estimate_line(found))
                return
            observer = Several(watcher, *map(stack.enter_context, trackers))
            summary = launch(given, folder, changes=changes, rollback=rollback, observer=observer)
    except KeyboardInterrupt:
        print("interrupted: every finished round is kept; start again to resume", file=sys.stderr)
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps({**encode_summary(summary), "folder": str(folder)}))
    else:
        display.summary_table(Console(), summary, folder)


@app.command(name="eval")
def evaluate(
    folder: Folder,
    position: Annotated[
        int | None,
        typer.Option(min=0, help="Position of the log; default: that of the final model."),
    ] = None,
    split: Annotated[
        str,
        typer.Option(help="test, dev (for tuning), 'client N', or sites: right answers there."),
    ] = "test",
    superlink: Superlink = None,
    as_json: Json = False,
) -> None:
    """Rebuild a run's model by replay and evaluate it; or let the sites of a deployment do so."""
    from hiso.run.launch import evaluate_run

    if split == "sites":
        if position is not None:
            raise SettingsError("--position: sites evaluate the end of the log only")
        _show(count_right(folder, superlink), as_json, display.plain_table)
        return
    if superlink is not None:
        raise SettingsError("--superlink: only --split sites needs one")

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        result = evaluate_run(folder, position=position, split=split, observer=watcher)
    _show(result, as_json, display.plain_table)


@app.command()
def inspect(
    folder: Folder,
    rounds: Annotated[int, typer.Option(min=0, help="How many of the last rounds to list.")] = 5,
    as_json: Json = False,
) -> None:
    """Show a run: settings, rounds, scalars, bytes, digest. Reads only the ledger."""
    from hiso.run.inspect import inspect_run

    _show(inspect_run(folder, rounds), as_json, display.inspection)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine: versions, backends, threads, and the speed of the kernels."""
    from hiso.run.doctor import examine

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        report = examine(watcher)
    _show(report, as_json, display.diagnosis)
    if not report["healthy"]:
        raise typer.Exit(1)


@app.command()
def bench(
    against: Annotated[
        str | None,
        typer.Option(
            metavar="usual",
            help="Also time the usual implementation (13 GB of memory).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine: speed and memory of rounds and of replay, compared with targets."""
    from hiso.lab.bench.report import FULL, measure_all

    if against not in (None, "usual"):
        raise typer.BadParameter("must be usual", param_hint="--against")
    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        report = measure_all(watcher, against_usual=against == "usual", size=FULL)
    _show(report, as_json, display.benchmark)


def _show(result: dict[str, Any], as_json: bool, render: display.Render) -> None:
    if as_json:
        print(json.dumps(result))
    else:
        render(Console(), result)


def _end_with(error: HisoError) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {display.escape(str(error))}", soft_wrap=True)
    if flags := _remedy(error):
        print(f"as flags: {flags}", file=sys.stderr)
    sys.exit(error.exit_code)


def _remedy(error: HisoError) -> str | None:
    """The flags that would solve the error, from its attributes."""
    match error:
        case Diverged(position=int(position), lr=float(lr)):
            return f"--rollback {position} --change lr={lr:.3g}"
        case ProtocolError(position=int(position)):
            return f"--rollback {position}"
        case RunConflict(settings=different) if different:
            words = [
                f"--change {shlex.quote(f'{key}={_value(asked)}')}"
                for key, (_, asked) in different.items()
                if key in CHANGEABLE
            ]
            alter = f", {' '.join(words)} to change this run" if words else ""
            return f"--out FOLDER for a new run{alter}"
        case _:
            return None


def _value(value: Any) -> str:
    """A value as text that `parse_change` can read."""
    return value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Entry point: runs a command, turns hiso's errors into a message and an exit code."""
    # Waiting threads sleep instead of using a core; must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except HisoError as error:
        _end_with(error)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        _end_with(StorageError.of(error.filename or "a file", error))
    except KeyboardInterrupt:
        sys.exit(130)
