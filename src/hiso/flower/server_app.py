"""The server application: a run from settings to summary, without model and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median_low
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from hiso.errors import ProtocolError, SettingsError
from hiso.flower.exchange import MAX_ANSWER, Post, look_again_soon
from hiso.flower.logs import keep_private, log_to
from hiso.flower.present import Present
from hiso.flower.rounds import Conductor, Pace, agree_on_identity
from hiso.flower.sites import Sites
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import SCALAR_BYTES
from hiso.ring.server import Server
from hiso.run.folder import RunFolder
from hiso.run.formatting import named
from hiso.run.identity import settings_identity
from hiso.run.loop import Loop
from hiso.run.observer import Silent
from hiso.run.prepare import look, open_ledger, prepare, resolve_settings
from hiso.run.results import Round, Summary, rounds_of
from hiso.run.settings import Settings
from hiso.run.summary import summarise

LOG = "server.log"
SITES = "sites"
"""Name of the split of an evaluation over all sites."""
_ATTEMPTS = 20
"""Number of attempts at a round that may be aborted in a row."""
_CLIP = 3.0
"""Default of the setting `clip` for a new run."""
_REST = 2**16
"""Bytes of an answer that are not numbers, at most."""
_PREDECESSOR = 120.0
"""Seconds to wait for the end of an earlier server process whose SuperLink was killed."""
log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs with the values that `hiso serve` put into the run's configuration."""
    config = context.run_config
    out = Path(str(config["out"]))
    keep_private(out)
    log_to(out / LOG)
    look_again_soon()
    pace = Pace(float(config["round-seconds"]), int(config["start-with"]))
    rollback = int(config["rollback"])
    try:
        if config["count"]:
            count(grid, out, pace)
            return
        serve(
            grid,
            json.loads(str(config["settings"])),
            out,
            pace,
            changes=json.loads(str(config["changes"])),
            rollback=None if rollback < 0 else rollback,
            release=json.loads(str(config["release"])),
        )
    except Exception as error:
        log.error("%s: %s", type(error).__name__, error)
        raise


def check(settings: Settings, pace: Pace) -> None:
    """Checks that a server can run these settings.

    Raises:
        SettingsError: A setting needs a model or data at the server (`mu` = auto, label words made
            from data, evaluations that decide something), `start_with` exceeds the number of
            clients, or a reply would be larger than the server accepts.
    """
    numbers = settings.local_steps * settings.directions
    numbers *= 1 + settings.make_method().measures_curvature
    if SCALAR_BYTES * numbers > MAX_ANSWER - _REST:
        raise SettingsError(
            f"a reply of local_steps · directions = {numbers} numbers is larger than the "
            f"{MAX_ANSWER} bytes that a server accepts: choose fewer"
        )
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
    release: Sequence[int] = (),
) -> Summary:
    """Starts or resumes the run in the folder `out`, runs to the last round, returns the summary.

    Args:
        grid: Flower's connection to the nodes.
        given: Settings by name. If the folder holds a run, they must equal the run's settings.
        out: The run's folder.
        pace: How long to wait, and for how many clients.
        changes: Settings that take a new value from now on.
        rollback: First roll back to this position; later rounds are kept as abandoned.
        release: Client numbers that another key may claim from now on.

    Raises:
        SettingsError: The settings are wrong. The folder is unchanged.
        RunConflict: The folder holds another run, or another process is using it.
        Diverged: The loss has exploded; the ledger keeps the last good round.
        RoundAborted: All allowed attempts at a round were aborted.
    """
    folder = RunFolder(out)
    seen = look(folder)
    if seen is None:  # nobody vouches for what sites send; a run that exists keeps what it has
        given = {"clip": _CLIP, **given}
    settings = resolve_settings(folder, given, changes, rollback, None)
    check(settings, pace)
    method = settings.make_method()
    post = Post(grid)
    sites = Sites(post, settings.clients)
    present = Present(out, sites)
    if seen is not None:
        with Ledger.open(folder.ledger) as ledger:
            identity, sites.run = ledger.identity, ledger.run
    else:
        log.info("waiting for %d clients", pace.start_with)
        expected = partial(settings_identity, settings, method)
        identity = agree_on_identity(post, sites, expected, pace.start_with, present)
    own = settings.with_hyper(method)
    with open_ledger(folder, identity, own, seen=seen, patience=_PREDECESSOR) as ledger:
        prepare(ledger, own, rollback, Silent())
        for client in release:
            log.warning("client %d is released; it belonged to %s", client, ledger.release(client))
        conductor = _conductor(ledger, own, post, sites, pace, present)
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
        try:
            if seen is not None:
                conductor.await_return()
            return loop.run()
        finally:
            present.tell("nothing more")


def count(grid: Grid, out: Path, pace: Pace) -> None:
    """Counts right answers over all sites at the end of a run's log.

    The ledger gets an evaluation on the split `SITES`: "accuracy", the share of right answers, and
    the numbers of "examples" and "sites".

    Args:
        grid: Flower's connection to the nodes.
        out: The run's folder.
        pace: How long to wait.

    Raises:
        RunConflict: Another process is using the folder.
        ProtocolError: No site has counted, or the folder holds no run.
    """
    folder = RunFolder(out)
    if (seen := look(folder)) is None:
        raise ProtocolError(f"{out} holds no run")
    settings = resolve_settings(folder, {}, {}, None, None)
    post = Post(grid)
    sites = Sites(post, settings.clients)
    present = Present(out, sites)
    with Ledger.open(folder.ledger) as ledger:
        identity = ledger.identity
    with open_ledger(folder, identity, settings, seen=seen) as ledger:
        conductor = _conductor(ledger, settings, post, sites, pace, present)
        try:
            found, examples, right = conductor.count()
        finally:
            present.tell("nothing more")
        if not found:
            raise ProtocolError(
                f"no site has counted right answers within {pace.round_seconds:g} s: a site "
                'allows it with evaluate = "test" in its site.toml'
            )
        metrics = {"accuracy": right / examples, "examples": examples, "sites": found}
        ledger.record_evaluation(ledger.position, SITES, metrics)
        log.info("%d sites: %d of %d right", found, right, examples)


def _conductor(
    ledger: Ledger, settings: Settings, post: Post, sites: Sites, pace: Pace, present: Present
) -> Conductor:
    """Runs this ledger's run with these sites."""
    sites.owners.keep_in(ledger)
    sites.run = ledger.run
    server = Server(ledger, settings.make_rounds(settings.make_method()))
    return Conductor(post, sites, server, pace, present)


def _summary(ledger: Ledger, conductor: Conductor, sites: Sites) -> Summary:
    """The summary of the run, with the digest on which the workers agree at its end."""
    digest, answered = conductor.finish()
    summary = summarise(
        ledger,
        "each client's own",
        weights=median_low([site.weights for site in sites.by_client.values()] or [0]),
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
        log.info("run %s, continuing at round %d", self._run, position)

    def round(self, done: Round) -> None:
        """See `Observer.round`."""
        if done.round >= self._first:
            loss = "not reported" if done.loss is None else f"{done.loss:.4f}"
            log.info(
                "round %d: loss %s, %s, %.1f s, %d B up, %d B down",
                done.round, loss, named(done.clients), done.seconds, done.bytes_up, done.bytes_down,
            )  # fmt: skip
