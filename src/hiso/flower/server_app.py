"""The server application: a run from its settings to its summary, with neither model nor data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hiso.errors import SettingsError
from hiso.flower.exchange import Post
from hiso.flower.logs import log_to
from hiso.flower.rounds import Conductor, Pace, agree_on_identity
from hiso.flower.sites import Sites
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.run.folder import RunFolder
from hiso.run.identity import settings_identity
from hiso.run.loop import Loop
from hiso.run.observer import Silent
from hiso.run.prepare import look, open_ledger, prepare, resolve_settings
from hiso.run.results import Round, Summary, rounds_of
from hiso.run.settings import Settings
from hiso.run.summary import summarise

LOG = "server.log"
_ATTEMPTS = 20
"""Attempts at a round that may come to nothing, one after the other."""
_PREDECESSOR = 120.0
"""Seconds that a server waits for the one before it, whose SuperLink was killed, to end."""
log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Takes what `hiso serve` has put into the run's configuration."""
    config = context.run_config
    out = Path(str(config["out"]))
    out.mkdir(parents=True, exist_ok=True)
    log_to(out / LOG)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    pace = Pace(float(config["round-seconds"]), int(config["start-with"]))
    rollback = int(config["rollback"])
    try:
        serve(
            grid,
            json.loads(str(config["settings"])),
            out,
            pace,
            changes=json.loads(str(config["changes"])),
            rollback=None if rollback < 0 else rollback,
        )
    except Exception as error:
        log.error("%s: %s", type(error).__name__, error)
        raise


def check(settings: Settings, pace: Pace) -> None:
    """Makes sure that a server can run these settings.

    Raises:
        SettingsError: `mu` is to be measured, label words are to be made from data, evaluations are
            to decide something, or more clients are waited for than there are.
    """
    if not 0 < pace.start_with <= settings.clients:
        raise SettingsError(f"start_with = {pace.start_with} must lie in [1, {settings.clients}]")
    if settings.keep == "best" or settings.patience:
        raise SettingsError("keep = best and patience need a model, and a server has none")
    if settings.task_definition is not None:
        settings.task_definition.make_task(settings.task)
    if settings.mu == "auto":
        raise SettingsError(
            "mu = auto measures on the model, which a server does not have: set the mu and scheme "
            "that a run with mu = auto and rounds = 1 finds at a site"
        )


def serve(
    grid: Grid,
    given: Mapping[str, Any],
    out: Path,
    pace: Pace,
    *,
    changes: Mapping[str, Any],
    rollback: int | None,
) -> Summary:
    """Runs to the last round, from wherever the folder `out` stands; gives the summary.

    Args:
        grid: Flower's way to the nodes.
        given: Settings by name. In a folder that holds a run, they must be those of the run.
        out: The run's folder.
        pace: How long to wait, and for whom.
        changes: Settings that take a new value from here on.
        rollback: Goes back to this position first; later rounds are kept as abandoned.

    Raises:
        SettingsError: The settings are wrong. The folder is as it was.
        RunConflict: The folder holds another run, or another process is at work on it.
        Diverged: The loss has exploded; the ledger keeps the last good round.
        RoundAborted: A round has come to nothing too often.
    """
    folder = RunFolder(out)
    seen = look(folder)
    settings = resolve_settings(folder, given, changes, rollback, None)
    check(settings, pace)
    method = settings.make_method()
    post = Post(grid)
    sites = Sites(post, settings.clients)
    if seen is not None:
        with Ledger.open(folder.ledger) as ledger:
            identity, sites.run = ledger.identity, ledger.run
    else:
        log.info("waiting for %d clients", pace.start_with)
        expected = partial(settings_identity, settings, method)
        identity = agree_on_identity(post, sites, expected, pace.start_with)
    own = settings.with_hyper(method)
    with open_ledger(folder, identity, own, seen=seen, patience=_PREDECESSOR) as ledger:
        prepare(ledger, own, rollback, Silent())
        server = Server(ledger, settings.make_rounds(method))
        sites.run = ledger.run
        conductor = Conductor(post, sites, server, pace)
        loop = Loop(
            folder,
            settings,
            _ToLog(ledger.run),
            rounds=partial(rounds_of, ledger),
            evaluations=ledger.evaluations,
            record=ledger.record_evaluation,
            round=conductor.round,
            summarise=lambda: _summary(ledger, conductor, sites),
            attempts=_ATTEMPTS,
        )
        return loop.run()


def _summary(ledger: Ledger, conductor: Conductor, sites: Sites) -> Summary:
    """What came of the run, with the digest that the workers agree on at its end."""
    digest, answered = conductor.finish()
    summary = summarise(
        ledger,
        "each client's own",
        weights=max((site.weights for site in sites.by_client.values()), default=0),
        digest=digest,
        machine={"engine": "flower", "clients_at_the_end": answered},
    )
    log.info("%d rounds done, digest %s", ledger.position, summary.digest)
    return summary


class _ToLog(Silent):
    """Writes a line about every new round to the log."""

    def __init__(self, run: str) -> None:
        self._run, self._first = run, 0

    def started(self, position: int, rounds: int) -> None:  # noqa: ARG002
        """See `Observer.started`."""
        self._first = position
        log.info("run %s, going on at round %d", self._run, position)

    def round(self, done: Round) -> None:
        """See `Observer.round`."""
        if done.round >= self._first:
            clients = ", ".join(map(str, done.clients))
            log.info(
                "round %d: loss %.4f, clients %s, %.1f s, %d B up, %d B down",
                done.round, done.loss, clients, done.seconds, done.bytes_up, done.bytes_down,
            )  # fmt: skip
