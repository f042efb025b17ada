"""Runs a run from its settings to its summary, and evaluates existing runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hiso.core.method.base import Method
from hiso.core.method.registry import register
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import Diverged, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.run.choose_mu import settle
from hiso.run.estimate import estimate
from hiso.run.folder import RunFolder
from hiso.run.identity import check_identity
from hiso.run.loop import Loop
from hiso.run.observer import Observer, Silent
from hiso.run.prepare import Seen, look, open_ledger, prepare, resolve_settings
from hiso.run.results import Estimate, Summary, kept_position, rounds_of
from hiso.run.resume import check_method
from hiso.run.settings import Settings, own_method, parse_settings
from hiso.run.snapshots import save_snapshot, stand
from hiso.run.summary import summarise
from hiso.run.workload.base import Workload, adjustments, make_replica, measure_split
from hiso.run.workload.load import load_workload
from hiso.run.workload.objects import NOTHING, Objects
from hiso.run.workload.own_task import complete


def launch(
    given: Mapping[str, Any],
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    rollback: int | None = None,
    method: Method | None = None,
    objects: Objects = NOTHING,
    observer: Observer | None = None,
) -> Summary:
    """Starts or resumes the run in the folder `out`, runs to the last round, returns the summary.

    Args:
        given: Settings by name. If the folder holds a run, they must equal the run's settings.
        out: The run's folder; created if it does not exist.
        changes: Settings that take a new value from now on.
        rollback: First roll back to this position; later rounds are kept as abandoned.
        method: A method object, instead of the settings that describe a method. All of its
            hyper-parameters may be in `changes`, even if they are not settings.
        objects: Model, task and data that are objects; `given` has `objects.settings` for them.
        observer: Receives the progress.

    Raises:
        SettingsError: The settings are wrong. The folder is unchanged.
        RunConflict: The folder holds another run, or other settings. It is unchanged.
        LoadError: Model or data cannot be loaded. The folder is unchanged.
        Diverged: The loss is not finite or has exploded; the ledger keeps the last good round.
    """
    observer = observer or Silent()
    folder = RunFolder(out)
    ready = _prepared(given, folder, changes or {}, rollback, method, objects, observer)
    seen, settings, chosen, workload, replica = ready
    own = settings.with_hyper(chosen)
    with open_ledger(folder, replica.identity, own, seen=seen) as ledger:
        prepare(ledger, own, rollback, observer)
        stand(folder.snapshots, replica, ledger, ledger.position, observer)
        if ledger.position < settings.rounds:
            observer.estimated(estimate(settings, chosen, workload, replica, ledger.position))
        return _loop(folder, ledger, settings, chosen, workload, replica, observer).run()


def estimate_run(
    given: Mapping[str, Any],
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    rollback: int | None = None,
    observer: Observer | None = None,
) -> Estimate:
    """Estimates the cost of the rounds that `launch` would run; nothing is written.

    Arguments and errors are those of `launch`.
    """
    observer = observer or Silent()
    folder = RunFolder(out)
    ready = _prepared(given, folder, changes or {}, rollback, None, NOTHING, observer)
    seen, settings, chosen, workload, replica = ready
    position = 0
    if seen is not None:
        with Ledger.read(folder.ledger) as ledger:
            position = ledger.position if rollback is None else rollback
    return estimate(settings, chosen, workload, replica, position)


_Prepared = tuple[Seen | None, Settings, Method, Workload, Replica]


def _prepared(
    given: Mapping[str, Any],
    folder: RunFolder,
    changes: Mapping[str, Any],
    rollback: int | None,
    method: Method | None,
    objects: Objects,
    observer: Observer,
) -> _Prepared:
    """Everything that may fail before the first write to the folder: checks and loading."""
    chosen = None if method is None else _changed(method, changes)
    seen = look(folder)
    known = method or (None if seen is None else own_method(seen[1]))
    settings = resolve_settings(folder, given, changes, rollback, known)
    chosen = chosen or _changed(settings.make_method(), _beside(changes))
    settings = complete(settings, objects, observer)
    workload = load_workload(settings, chosen, observer, objects=objects)
    chosen = workload.identity.method  # with label biases if the settings ask for them
    if seen is None or {"mu", "scheme"} & changes.keys():
        settings = settle(settings, chosen, workload, observer)
    if seen is not None:
        with Ledger.open(folder.ledger) as ledger:
            check_identity(ledger.identity, workload.identity)
            check_method(ledger, rollback, chosen, changes)
            identity = ledger.identity
    else:
        identity = workload.identity
    replica = make_replica(identity, workload, settings.memory, observer)
    return seen, settings, chosen, workload, replica


def evaluate_run(
    path: Path,
    *,
    position: int | None = None,
    split: str = "test",
    method: Method | None = None,
    objects: Objects = NOTHING,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Rebuilds the model of a run by replay and evaluates it.

    It is the model at `position`, by default the run's final model (see the setting `keep`).

    A run with your own method needs this `method` again, and a run with objects needs the same
    `objects`.

    Raises:
        SettingsError: There is no such split.
        ProtocolError: There is no run, or its log has no such position.
        RunConflict: Model or data differ from those of the run.
        Diverged: The loss at this position is not finite.
    """
    if not re.fullmatch(r"test|dev|client \d+", split):
        raise SettingsError(f"split = {split!r} must be test, dev, or 'client N'")
    if method is not None:
        register(type(method))
    observer = observer or Silent()
    folder = RunFolder(path)
    with Ledger.read(folder.ledger) as ledger:
        at = kept_position(ledger) if position is None else position
        ledger.verify()
        ledger.chain_at(at)
        settings = parse_settings({**ledger.settings, "device": "auto"})
        chosen = method or settings.make_method()
        workload = load_workload(settings, chosen, observer, objects=objects)
        check_identity(ledger.identity, workload.identity)
        replica = make_replica(ledger.identity, workload, settings.memory, observer)
        stand(folder.snapshots, replica, ledger, at, observer)
        objective = workload.objective(replica.rows, joint=settings.joint)
        count = settings.client_examples or None
        try:
            metrics = measure_split(workload, replica, objective, split, count, observer)
        except Diverged as error:
            server = Server(ledger, settings.make_rounds(chosen))
            raise server.diverged(error) from error
        digest = f"{replica.digest():016x}"
        biases = replica.biases
        used = {} if biases is None else {"label_bias": biases.tolist()}
        where = {"run": ledger.run, "position": at, "split": split, "digest": digest}
        return {**where, **used, **metrics}


def _beside(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes that are not settings: hyper-parameters that only the user's method has."""
    return {key: value for key, value in changes.items() if key not in Settings.model_fields}


def _changed(method: Method, changes: Mapping[str, Any]) -> Method:
    return replace(method, **{key: value for key, value in changes.items() if key in method.hyper})


def _loop(
    folder: RunFolder,
    ledger: Ledger,
    settings: Settings,
    method: Method,
    workload: Workload,
    replica: Replica,
    observer: Observer,
) -> Loop:
    """All clients in this process, on one replica."""
    objective = workload.objective(replica.rows, joint=settings.joint)
    server = Server(ledger, settings.make_rounds(method))
    backward = dict.fromkeys(range(settings.backward_clients), objective.loss)
    adjust = adjustments(settings, workload)
    simulation = Simulation(
        server,
        replica,
        workload.shards,
        objective,
        backward=backward,
        at_points=objective.at_points if settings.joint_directions else None,
        adjust=adjust,
    )

    def measure(split: str) -> dict[str, float]:
        count = settings.client_examples or None
        try:
            return measure_split(workload, replica, objective, split, count, observer)
        except Diverged as error:
            raise server.diverged(error) from error

    def keep(position: int) -> None:
        if settings.snapshot_every and position % settings.snapshot_every == 0:
            save_snapshot(folder.snapshots, replica)

    return Loop(
        folder,
        settings,
        observer,
        rounds=partial(rounds_of, ledger),
        evaluations=ledger.evaluations,
        record=ledger.record_evaluation,
        round=simulation.round,
        summarise=lambda: _summary(ledger, workload, replica),
        measure=measure,
        keep=keep,
    )


def _summary(ledger: Ledger, workload: Workload, replica: Replica) -> Summary:
    return summarise(
        ledger,
        workload.source,
        weights=replica.numel,
        digest=replica.digest(),
        machine={
            "device": str(replica.weights.device),
            "backend": replica.backend,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        gpu=torch.cuda.max_memory_allocated(),
    )
