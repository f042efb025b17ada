"""`hiso serve`: the server of a deployment, started through Flower."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from hiso.run.folder import RunFolder


Superlink = Annotated[
    str | None, typer.Option(help="Name of a connection in Flower's config.toml.")
]

_COUNT_SECONDS = 3600.0
"""Longest wait for the counts of the sites."""


@with_settings
def serve(
    settings: dict[str, Any],
    file: SettingsFile = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder, on the SuperLink's machine.")
    ] = None,
    superlink: Superlink = None,
    start_with: Annotated[
        int | None, typer.Option(min=1, help="Clients to wait for before a new run; default: all.")
    ] = None,
    round_seconds: Annotated[
        float, typer.Option(min=1, help="Longest wait for the replies of a round.")
    ] = 600,
    change: Changes = None,
    rollback: Rollback = None,
    release: Annotated[
        list[int] | None,
        typer.Option(
            metavar="CLIENT",
            min=0,
            help="Let another key claim this client number, for a site with a new key; repeatable.",
            show_default=False,
        ),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Do not wait for the end of the run.")
    ] = False,
) -> None:
    """Run rounds with the workers connected to a SuperLink, or resume the run in the folder.

    Start this command on the SuperLink's machine. It needs neither model nor data.
    """
    from hiso.run.folder import RunFolder
    from hiso.run.prepare import resolve_settings

    _need_flower()
    from hiso.flower.rounds import Pace
    from hiso.flower.server_app import LOG, check
    from hiso.flower.submit import Submission
    from hiso.run.summary import shares

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
        "release": json.dumps(release or []),
    }
    os.umask(0o077)  # the run's files are for their owner alone
    before = _answered(folder)
    submission = Submission(config, superlink)
    print(
        f"Flower's number of the run is {submission.run}; `flwr stop {submission.run}` stops it",
        flush=True,
    )
    if detach:
        return
    submission.watch()
    outcome, summary = submission.outcome(), folder.read_summary()
    if outcome.status == "finished:stopped":
        print("stopped: every finished round is kept; start again to resume", file=sys.stderr)
        raise typer.Exit(130)
    if outcome.status != "finished:completed" or summary is None:
        raise ProtocolError(
            f"the run did not finish (status in Flower: {outcome.status}): see {folder.path / LOG}"
        )
    if summary.sent_bytes_up is None:  # otherwise it describes the same rounds as before
        sent = {"sent_bytes_up": outcome.bytes_up, "sent_bytes_down": outcome.bytes_down}
        each = summary.per_round_and_worker | shares(_answered(folder) - before, **sent)
        summary = replace(summary, **sent, per_round_and_worker=each)
        folder.write_summary(summary)
    display.summary_table(Console(), summary, folder.path)


def count_right(path: Path, superlink: str | None) -> dict[str, Any]:
    """The share of right answers over all sites at the end of a run's log; see `server_app.count`.

    Raises:
        LoadError: Flower is not installed.
        ProtocolError: There is no run, the SuperLink cannot be reached, or no site has counted.
    """
    from hiso.ring.ledger.ledger import Ledger
    from hiso.run.folder import RunFolder

    _need_flower()
    from hiso.flower.server_app import LOG, SITES
    from hiso.flower.submit import Submission

    folder = RunFolder(path)
    with Ledger.read(folder.ledger) as ledger:
        position, run = ledger.position, ledger.run
    config = {"out": str(folder.path.absolute()), "count": True, "round-seconds": _COUNT_SECONDS}
    submission = Submission(config, superlink)
    submission.watch(show=False)
    outcome = submission.outcome()
    if outcome.status != "finished:completed":
        raise ProtocolError(
            f"the sites have not counted (status in Flower: {outcome.status}): see "
            f"{folder.path / LOG}"
        )
    with Ledger.read(folder.ledger) as ledger:
        (metrics,) = (
            e.metrics for e in ledger.evaluations() if (e.position, e.split) == (position, SITES)
        )
    return {"run": run, "position": position, "split": SITES, **metrics}


def _need_flower() -> None:
    if find_spec("flwr") is None:
        raise LoadError("this command needs Flower: pip install 'hiso[flower]'")


def _answered(folder: RunFolder) -> int:
    from hiso.ring.ledger.ledger import Ledger

    if not folder.has_run():
        return 0
    with Ledger.open(folder.ledger) as ledger:
        return ledger.answered()
