"""A run from its settings to its summary; and a run that exists, opened again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hiso.core.method import Method
from hiso.core.methods import register
from hiso.core.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import Diverged, ProtocolError, SettingsError
from hiso.federation.ledger import Ledger
from hiso.federation.runfile import Evaluation
from hiso.federation.server import Aborted, Server
from hiso.run.folder import RunFolder, evaluation_line, round_lines
from hiso.run.identity import check_identity
from hiso.run.observer import Observer, Silent
from hiso.run.opening import look, open_ledger, prepare, resolve_settings
from hiso.run.precision import settle
from hiso.run.resume import check_method
from hiso.run.settings import Settings, parse_settings
from hiso.run.snapshots import save_snapshot, stand
from hiso.run.summary import summarise
from hiso.run.workload import Workload, load_workload, make_replica, measure_split


def launch(
    given: Mapping[str, Any],
    out: Path,
    *,
    changes: Mapping[str, Any] | None = None,
    rollback: int | None = None,
    method: Method | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Runs to the last round, from wherever the folder `out` stands; gives the summary.

    Args:
        given: Settings by name. In a folder that holds a run, they must be those of the run.
        out: The run's folder; made if it is missing.
        changes: Settings that take a new value from here on.
        rollback: Goes back to this position first; later rounds are kept as abandoned.
        method: A method object in place of the settings that describe one. Its hyper-parameters
            may be among `changes`, also those that are no settings.
        observer: Who watches.

    Raises:
        SettingsError: The settings are wrong. The folder is as it was.
        RunConflict: The folder holds another run, or other settings. It is as it was.
        LoadError: Model or data cannot be loaded. The folder is as it was.
        Diverged: The loss is not finite or has exploded; the ledger keeps the last good round.
    """
    observer = observer or Silent()
    folder, changes = RunFolder(out), changes or {}
    chosen = None if method is None else _changed(method, changes)
    seen = look(folder)
    settings = resolve_settings(folder, given, changes, rollback, method)
    chosen = chosen or settings.make_method()
    workload = load_workload(settings, chosen, observer)
    # All that may fail comes before the first write to the folder.
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
    own = settings.with_hyper(chosen)
    with open_ledger(folder, identity, own, seen=seen) as ledger:
        prepare(ledger, own, rollback, observer)
        stand(folder.snapshots, replica, ledger, ledger.position, observer)
        _Run(folder, ledger, settings, chosen, workload, replica, observer).finish()
        summary = summarise(
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
        )
        gpu = {"peak_gpu_memory_bytes": torch.cuda.max_memory_allocated()}
        return folder.keep_summary(summary | gpu)


def evaluate_run(
    path: Path,
    *,
    position: int | None = None,
    split: str = "test",
    method: Method | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Rebuilds the model of a run by replay, at `position` or the end, and evaluates it.

    A run of a method of your own needs that `method` again.

    Raises:
        SettingsError: There is no such split.
        ProtocolError: There is no run, or its log is not that long.
        RunConflict: Model or data are not those that the run was made with.
        Diverged: The loss there is not finite.
    """
    if not re.fullmatch(r"test|dev|client \d+", split):
        raise SettingsError(f"split = {split!r} must be test, dev, or 'client N'")
    if method is not None:
        register(type(method))
    observer = observer or Silent()
    folder = RunFolder(path)
    with Ledger.read(folder.ledger) as ledger:
        at = ledger.position if position is None else position
        ledger.verify()
        ledger.chain_at(at)
        settings = parse_settings({**ledger.settings, "device": "auto"})
        chosen = method or settings.make_method()
        workload = load_workload(settings, chosen, observer)
        check_identity(ledger.identity, workload.identity)
        replica = make_replica(ledger.identity, workload, settings.memory, observer)
        stand(folder.snapshots, replica, ledger, at, observer)
        objective = workload.objective(replica.rows, joint=settings.joint)
        count = settings.client_examples or None
        try:
            metrics = measure_split(workload, replica, objective, split, count, observer)
        except Diverged as error:
            server = Server(ledger, settings.make_rounds(chosen))
            raise server.diverged(str(error)) from error
        digest = f"{replica.digest():016x}"
        return {"run": ledger.run, "position": at, "split": split, "digest": digest, **metrics}


def _changed(method: Method, changes: Mapping[str, Any]) -> Method:
    return replace(method, **{key: value for key, value in changes.items() if key in method.hyper})


class _Run:
    """A replica, a federation and a watcher around one ledger."""

    def __init__(
        self,
        folder: RunFolder,
        ledger: Ledger,
        settings: Settings,
        method: Method,
        workload: Workload,
        replica: Replica,
        observer: Observer,
    ) -> None:
        self.folder, self.ledger, self.settings = folder, ledger, settings
        self.workload, self.replica, self.observer = workload, replica, observer
        self.objective = workload.objective(replica.rows, joint=settings.joint)
        server = Server(ledger, settings.make_rounds(method))
        self.simulation = Simulation(server, replica, workload.shards, self.objective)

    def finish(self) -> None:
        """Runs the rounds that are left, with evaluations before, in between and after."""
        self.folder.rewrite_metrics(self.ledger)
        if self.ledger.position < self.settings.rounds:
            self.folder.summary.unlink(missing_ok=True)
        if self.ledger.position == 0:
            self._evaluate_dev(0)
            self._evaluate_once("test")
        self.observer.started(self.ledger.position, self.settings.rounds)
        for row in self.ledger.rounds():
            self.observer.round(row)
        for position in range(self.ledger.position, self.settings.rounds):
            self._evaluate_dev(position)
            closed = self.simulation.round()
            if isinstance(closed, Aborted):
                raise ProtocolError(f"round {closed.round} was aborted: {closed.reason}")
            (row,) = self.ledger.rounds(position)
            self.folder.append_metrics(*round_lines(self.ledger, position))
            self.observer.round(row)
            every = self.settings.snapshot_every
            if every and self.ledger.position % every == 0:
                save_snapshot(self.folder.snapshots, self.replica)
        self._evaluate_dev(self.ledger.position)
        self._evaluate_once("test")
        if self.settings.client_examples:
            for client in range(self.settings.clients):
                self._evaluate_once(f"client {client}")

    def measure(self, split: str) -> dict[str, float]:
        """Metrics of the replica where it stands.

        Args:
            split: "test", "dev", or "client 0" and so on for examples that a client trains on.

        Raises:
            Diverged: One is not finite.
        """
        count = self.settings.client_examples or None
        try:
            return measure_split(
                self.workload, self.replica, self.objective, split, count, self.observer
            )
        except Diverged as error:
            raise self.simulation.server.diverged(str(error)) from error

    def _evaluate_dev(self, position: int) -> None:
        every = self.settings.eval_every
        if every and position % every == 0:
            self._evaluate_once("dev")

    def _evaluate_once(self, split: str) -> None:
        """Evaluates here, unless the ledger has it."""
        position = self.replica.position
        if any((e.position, e.split) == (position, split) for e in self.ledger.evaluations()):
            return
        evaluation = Evaluation(position, split, self.measure(split))
        self.ledger.record_evaluation(position, split, evaluation.metrics)
        self.folder.append_metrics(evaluation_line(evaluation))
        self.observer.evaluated(evaluation)
