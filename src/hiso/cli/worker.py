"""`hiso worker`: the process of a data holder."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json, merge_file, with_settings
from hiso.errors import LoadError

if TYPE_CHECKING:
    from hiso.flower.access import Access
    from hiso.run.settings import Settings

Folder = Annotated[Path, typer.Argument(help="The worker's folder.", show_default=False)]

app = typer.Typer(
    no_args_is_help=True,
    help="Hold the data of a client, or of several, and answer the server, through Flower.",
)


File = Annotated[Path, typer.Argument(help="TOML file of settings.", show_default=False)]
Clients = Annotated[
    str,
    typer.Option(
        metavar="N", help="Number of this client, from 0; or those of several: 0-29 or 2,5,7."
    ),
]
Ca = Annotated[
    Path | None, typer.Option(help="PEM file of the certificate that signs the SuperLink's.")
]
Key = Annotated[
    Path | None, typer.Option(help="This site's private key, registered at the SuperLink.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="No TLS and no registered key: for trials.")
]
Share = Annotated[
    bool,
    typer.Option(
        "--share",
        help="Use only this client's share of the data; for data that are the same everywhere.",
    ),
]
Probe = Annotated[
    Literal["forward", "backward"],
    typer.Option(help="How to measure the scalars: by forward passes, or by a backward pass."),
]


@app.command()
@with_settings
def start(
    settings: dict[str, Any],
    file: File,
    client: Clients,
    folder: Annotated[
        Path, typer.Option(help="The worker's folder; created if it does not exist.")
    ],
    superlink: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of Flower's SuperLink.")
    ],
    ca: Ca = None,
    key: Key = None,
    insecure: Insecure = False,
    share: Share = False,
    probe: Probe = "forward",
    watchdog: Annotated[
        float, typer.Option(min=1, help="End after this many seconds without progress.")
    ] = 1800,
) -> None:
    """Load model and data, and answer the server until stopped. Stays in the foreground.

    Needs --ca and --key, or --insecure. Waits for a SuperLink that is not there (yet, or any more).

    Flags override the TOML file, which should be the same for server and workers, except for
    `data`. What this site allows and shows is in FOLDER/site.toml, which the first start writes.
    """
    parsed, clients = _parsed(file, settings, client)
    access = _access(superlink, ca, key, insecure)
    from hiso.flower.daemon import LOG, Resident
    from hiso.flower.logs import keep_private, log_to

    keep_private(folder)
    log_to(folder / LOG)
    Resident(folder, clients, watchdog).run(parsed, access, share=share, probe=probe)


@app.command()
@with_settings
def check(
    settings: dict[str, Any],
    file: File,
    client: Clients,
    folder: Annotated[
        Path, typer.Option(help="The worker's folder; need not exist. Its site.toml is obeyed.")
    ],
    superlink: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ask this SuperLink whether it knows the key."),
    ] = None,
    ca: Ca = None,
    key: Key = None,
    insecure: Insecure = False,
    share: Share = False,
    probe: Probe = "forward",
    as_json: Json = False,
) -> None:
    """Show what this site would use, send and take, and everything that would stop a run.

    Takes part in no run, and changes no file: it loads model and data, times one local step, and
    asks the SuperLink whether it knows the key. Ends with the exit code of the first problem.
    """
    parsed, clients = _parsed(file, settings, client)
    access = None if superlink is None else _access(superlink, ca, key, insecure)
    from hiso.flower.check import check_site

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        found = check_site(
            parsed, clients, folder, access, share=share, probe=probe, observer=watcher
        )
    if as_json:
        print(json.dumps(found.as_json()))
    else:
        display.findings(Console(), found.as_json())
    if found.problems:
        raise typer.Exit(found.problems[0].code)


def _parsed(file: Path, settings: dict[str, Any], client: str) -> tuple[Settings, list[int]]:
    if find_spec("flwr") is None:
        raise LoadError("hiso worker needs Flower: pip install 'hiso[flower]'")
    from hiso.run.formatting import client_numbers
    from hiso.run.settings import parse_settings

    given, _ = merge_file(file, settings)
    parsed = parse_settings(given)
    clients = client_numbers(client)
    if clients[-1] >= parsed.clients:
        raise typer.BadParameter(
            f"{clients[-1]} must be below clients = {parsed.clients}", param_hint="--client"
        )
    return parsed, clients


def _access(superlink: str, ca: Path | None, key: Path | None, insecure: bool) -> Access:
    from hiso.flower.access import Access

    if insecure == (ca is not None) or (ca is None) != (key is None):
        raise typer.BadParameter("give --ca and --key, or --insecure", param_hint="--insecure")
    if not re.fullmatch(r"[^/\s]+:\d+", superlink):
        raise typer.BadParameter("must be HOST:PORT, without http://", param_hint="--superlink")
    return Access(superlink, ca, key)


@app.command()
def status(
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Show what a worker is doing, its position, and its last error."""
    from hiso.flower.status import read_status

    facts = read_status(folder)
    if as_json:
        print(json.dumps(facts))
    else:
        times = ("started", "doing_since")  # the durations are there too
        shown = {name: fact for name, fact in facts.items() if name not in times}
        display.plain_table(Console(), shown | {"process": str(facts["process"])})


@app.command()
def stop(folder: Folder) -> None:
    """Make a worker save a snapshot and end; a running measurement is discarded."""
    from hiso.flower.status import stop_worker

    Console().print(f"process {stop_worker(folder)} is stopping")
