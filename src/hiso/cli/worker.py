"""`hiso worker`: the process of a data holder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json, merge_file, with_settings
from hiso.errors import ProtocolError

Folder = Annotated[Path, typer.Argument(help="The worker's folder.", show_default=False)]

app = typer.Typer(
    no_args_is_help=True,
    help="Hold one client's data and answer the server, through Flower.",
)


@app.command()
@with_settings
def start(
    settings: dict[str, Any],
    file: Annotated[Path, typer.Argument(help="TOML file of settings.", show_default=False)],
    client: Annotated[int, typer.Option(min=0, help="Number of this client, from 0.")],
    folder: Annotated[
        Path, typer.Option(help="The worker's folder; created if it does not exist.")
    ],
    share: Annotated[
        bool,
        typer.Option("--share", help="Use only this client's share of the data."),
    ] = False,
    probe: Annotated[
        Literal["forward", "backward"],
        typer.Option(help="How to measure the scalars: by forward passes, or by a backward pass."),
    ] = "forward",
    watchdog: Annotated[
        float, typer.Option(min=1, help="End after this many seconds without progress.")
    ] = 1800,
) -> None:
    """Load model and data, and answer the server until stopped. Stays in the foreground.

    Flags override the TOML file, which should be the same for server and workers, except for
    `data`. What this site allows and shows is in FOLDER/site.toml, which the first start writes.
    """
    from hiso.flower.daemon import LOG, Resident
    from hiso.flower.logs import keep_private, log_to
    from hiso.run.settings import parse_settings

    given, _ = merge_file(file, settings)
    parsed = parse_settings(given)
    if client >= parsed.clients:
        raise typer.BadParameter(f"must be below clients = {parsed.clients}", param_hint="--client")
    keep_private(folder)
    log_to(folder / LOG)
    Resident(folder, client, watchdog).run(parsed, share=share, probe=probe)


@app.command()
def status(
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Show what a worker is doing, its position, and its last error."""
    facts = _ask(folder, "status")
    if as_json:
        print(json.dumps(facts))
    else:
        display.plain_table(Console(), facts)


@app.command()
def stop(folder: Folder) -> None:
    """Make a worker save a snapshot and end; a running measurement is discarded."""
    process = _ask(folder, "stop")["process"]
    Console().print(f"process {process} is stopping")


def _ask(folder: Path, kind: str) -> dict[str, Any]:
    from hiso.flower.envelope import Envelope
    from hiso.flower.local_socket import ask

    answer = ask(folder, Envelope(kind), timeout=10)
    if answer.kind == "error":
        raise ProtocolError(answer.facts["reason"])
    return answer.facts
