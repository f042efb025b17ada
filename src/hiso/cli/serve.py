"""`hiso serve`: the server of a deployment, started through Flower."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import (
    Changes,
    Rollback,
    SettingsFile,
    merge_file,
    parse_change,
    with_settings,
)
from hiso.errors import LoadError, ProtocolError


@with_settings
def serve(
    settings: dict[str, Any],
    file: SettingsFile = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, on the SuperLink's machine.")
    ] = None,
    superlink: Annotated[
        str | None, typer.Option(help="Name of a connection in Flower's config.toml.")
    ] = None,
    start_with: Annotated[
        int | None, typer.Option(min=1, help="Clients to wait for before a new run; default: all.")
    ] = None,
    round_seconds: Annotated[
        float, typer.Option(min=1, help="Longest wait for the replies of a round.")
    ] = 600,
    change: Changes = None,
    rollback: Rollback = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait for the end: see the run's folder.")
    ] = False,
) -> None:
    """Run rounds with the workers that a SuperLink reaches; go on where the folder's run stands.

    Run it on the SuperLink's machine. Needs neither model nor data.
    """
    from hiso.run.folder import RunFolder
    from hiso.run.opening import resolve_settings

    if find_spec("flwr") is None:
        raise LoadError("hiso serve needs Flower: pip install 'hiso[flower]'")
    from hiso.flower.conduct import Pace
    from hiso.flower.server import check

    given, named = merge_file(file, settings)
    folder = RunFolder(out or named or Path("runs/flower"))
    changes = dict(parse_change(text) for text in change or [])
    resolved = resolve_settings(folder, given, changes, rollback, None)
    pace = Pace(round_seconds, start_with or resolved.clients)
    check(resolved, pace)
    config = {
        "settings": json.dumps(given),
        "out": str(folder.path.absolute()),
        "changes": json.dumps(changes),
        "rollback": -1 if rollback is None else rollback,
        "round-seconds": pace.round_seconds,
        "start-with": pace.start_with,
    }
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "run.toml"  # strings of JSON are strings of TOML
        path.write_text("".join(f"{key} = {json.dumps(v)}\n" for key, v in config.items()))
        command = ["flwr", "run", str(files("hiso.flower") / "app")]
        command += [superlink] if superlink else []
        command += ["--run-config", str(path), *([] if detach else ["--stream"])]
        done = subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]])
    if done.returncode:
        raise ProtocolError(f"flwr run ended with code {done.returncode}: see what it says above")
    if detach:
        return
    summary = folder.read_summary()
    if summary is None:
        raise ProtocolError(f"the run has not come to its end: see {folder.path / 'server.log'}")
    display.summary_table(Console(), {**summary, "folder": os.fspath(folder.path)})
