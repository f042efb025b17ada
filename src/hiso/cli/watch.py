"""`hiso watch`: a run as it goes on, on the terminal or through HTTP."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hiso.cli.options import Json

if TYPE_CHECKING:
    from hiso.run.watch import Watched

_PAUSE = 1.0
"""Seconds between two readings, at least."""
_SHARE = 10
"""The pause is also this many times as long as reading takes."""
_ROUNDS = 40
"""Number of losses in the small curve."""


def watch(
    run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)],
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Serve a page and /metrics for Prometheus on this port of 127.0.0.1; 0: any.",
            show_default=False,
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one table and end, as without a terminal.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Watch a run: rounds, loss, bytes, and each client. Only reads, and disturbs nobody.

    On a terminal the view stays until the run is finished, or Ctrl-C.
    """
    from hiso.run.watch import watch_run

    if port is not None and (once or as_json):
        raise typer.BadParameter(
            "serves until Ctrl-C: leave --once, --json out", param_hint="--port"
        )
    watched = watch_run(run)
    console = Console()
    if port is not None:
        from hiso.report.watch.server import watch_server

        with watch_server(run, port) as server:
            print(f"http://127.0.0.1:{server.server_port}/ and …/metrics; Ctrl-C ends", flush=True)
            server.serve_forever()
    elif as_json:
        print(json.dumps(asdict(watched)))
    elif once or not console.is_terminal:
        console.print(_view(watched))
    else:
        _live(run, console, watched)


def _live(run: Path, console: Console, watched: Watched) -> None:
    """Shows the run until it is finished."""
    from hiso.run.watch import watch_run

    with Live(_view(watched, console.height), console=console, auto_refresh=False) as live:
        while not watched.finished:
            began = time.monotonic()
            watched = watch_run(run)
            took = time.monotonic() - began
            live.update(_view(watched, console.height), refresh=True)
            time.sleep(max(_PAUSE, _SHARE * took))


def _view(w: Watched, height: int | None = None) -> Group:
    """Facts and clients; with a height, the clients that fit, those with a problem first."""
    from hiso.report.watch.words import client_table, facts, fitting, sparkline

    about = Table.grid(padding=(0, 2))
    for name, value in facts(w):
        curve = f"  {sparkline(w.losses[-_ROUNDS:])}" if name == "loss" and w.losses else ""
        about.add_row(Text(name, style="dim"), Text(value + curve))
    header, rows = client_table(w)
    table = Table(header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=height is not None)
    table.columns[-1].overflow = "fold" if height is None else "ellipsis"
    room = len(rows) if height is None else max(1, height - about.row_count - 6)
    rows, left = fitting(rows, room)
    for row in rows:
        table.add_row(*(Text(cell.text, style="yellow" if cell.wrong else "") for cell in row))
    more = [Text(f"{left:,} more clients", style="dim")] if left else []
    return Group(Text(w.folder, style="bold"), about, *([table] if rows else []), *more)
