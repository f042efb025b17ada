"""`hiso backup`: a copy of keys, databases and runs, while they are in use."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json
from hiso.run.formatting import size


def backup(
    to: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    paths: Annotated[
        list[Path],
        typer.Argument(help="Files and folders at or below this folder.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Copy keys, databases and runs into a new folder, while they are in use.

    At a server for example `hiso backup COPY keys flower runs`, at a site `hiso backup COPY keys
    worker-site0`. To restore, end the processes and copy the content back: `cp -a COPY/. .`
    """
    from hiso.run.backup import back_up

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        done = back_up(paths, to, watcher)
    if as_json:
        print(json.dumps(asdict(done)))
        return
    told = f"{done.files} files, {done.databases} of them databases, {size(done.bytes)}"
    Console().print(f"{done.folder}: {told}", highlight=False, markup=False, soft_wrap=True)
