"""Runs a baseline from its settings to its summary, in the format of hiso's own runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hiso.core.identity import canonical_json
from hiso.core.method.registry import ZoSgd
from hiso.core.record import chain_root
from hiso.core.replica.replica import Replica
from hiso.errors import Diverged, LoadError, NonFiniteLoss, ProtocolError, RunConflict
from hiso.lab.baselines.baseline_settings import BaselineSettings, parse_baseline
from hiso.lab.baselines.checkpoint import Checkpoint, read_checkpoint
from hiso.ring.accept.divergence import GUARD_ROUNDS, excess
from hiso.ring.ledger.runfile import Evaluation
from hiso.ring.messages import SCALAR_BYTES
from hiso.run.folder import RunFolder
from hiso.run.loop import Loop
from hiso.run.observer import Observer, Silent
from hiso.run.results import Round, Summary, encode_summary
from hiso.run.summary import compose
from hiso.run.workload.base import Workload, make_replica
from hiso.run.workload.load import load_workload


def train(
    given: Mapping[str, Any], out: Path, *, observer: Observer | None = None
) -> dict[str, Any]:
    """Trains a baseline from start to end in the folder `out`; returns the summary.

    Data, splits, partition, initial weights, the clients of each round and their batches are those
    of a hiso run with the same settings and seed. `metrics.jsonl` and `summary.json` have the
    format of a hiso run, with

    - `bytes_up`, `bytes_down`: 4 bytes for every trainable weight and sampled client, each way:
      the client's weights up, the global weights down. The server's moments stay at the server, so
      FedAdam, FedYogi and FedAdagrad send as much as FedAvg, unlike in some published tables;
    - `passes`: forward passes of one client's batch, over all sampled clients, where a backward
      pass counts as two: 3 per local step, or P + 1 (2P with central differences) for `fedzo`;
    - `forward_seconds`: the backward passes are included;
    - `paper_bytes`: the bytes, both ways, of one client that takes part in every round;
    - `chain`: None, because there is no log of scalars.

    A run that was stopped resumes at the last position with an evaluation on the tuning split,
    where `checkpoint.safetensors` (weights and moments) was saved; a run that was stopped before
    the first checkpoint starts again. The checkpoint is deleted at the end. A finished run is not
    trained again.

    Args:
        given: Settings by name; see `BaselineSettings`.
        out: The folder; created if it does not exist.
        observer: Receives the progress.

    Raises:
        SettingsError: The settings are wrong.
        RunConflict: The folder holds something else. It is unchanged.
        LoadError: Model, data or Flower are missing.
        Diverged: The loss is not finite or has exploded; `metrics.jsonl` has the rounds before.
    """
    observer = observer or Silent()
    settings, folder = parse_baseline(given), RunFolder(out)
    if folder.has_run():
        raise RunConflict(f"{out} holds a run of another kind, with a ledger: use another folder")
    summary = folder.read_summary()
    if summary is not None:
        _check_settings(out, summary.settings, settings)
        return encode_summary(summary)
    if find_spec("flwr") is None:
        raise LoadError("baselines use Flower's strategies: pip install 'hiso[flower]'")
    plain = settings.as_hiso()
    method = ZoSgd(lr=settings.hyper["lr"])
    workload = load_workload(plain, method, observer)
    replica = make_replica(workload.identity, workload, plain.memory, observer)
    out.mkdir(parents=True, exist_ok=True)
    with folder.lock():
        run = _Run(folder, settings, workload, replica, observer)
        run.catch_up()
        summary = run.loop().run()
        run.checkpoint.unlink(missing_ok=True)
        return encode_summary(summary)


def _check_settings(out: Path, stored: Mapping[str, Any], settings: BaselineSettings) -> None:
    asked = json.loads(json.dumps(settings.facts()))
    different = {
        key: (stored.get(key), asked.get(key))
        for key in {**stored, **asked}
        if stored.get(key) != asked.get(key)
    }
    if different:
        raise RunConflict(
            f"{out} holds a training with other settings:\n"
            + "\n".join(f"  {k}: {a!r} there, {b!r} asked for" for k, (a, b) in different.items())
            + "\nUse another folder, or delete this one.",
            settings=different,
        )


class _Run:
    """The federation of a baseline in one process, and its log."""

    def __init__(
        self,
        folder: RunFolder,
        settings: BaselineSettings,
        workload: Workload,
        replica: Replica,
        observer: Observer,
    ) -> None:
        from hiso.lab.baselines.federation import Federation

        self.folder, self.settings, self.observer = folder, settings, observer
        self.federation = Federation(settings, workload, replica)
        self.identity = json.loads(workload.identity.text) | {
            "method": {"name": settings.method, "hyper": settings.hyper, "feed": None}
        }
        self.checkpoint = folder.path / "checkpoint.safetensors"
        self.rounds: list[Round] = []
        self.evaluations: list[Evaluation] = []

    def catch_up(self) -> None:
        """Restores the checkpoint and the log up to it, or starts from the beginning.

        Raises:
            RunConflict: The checkpoint belongs to another run.
        """
        kept = read_checkpoint(self.checkpoint)
        if kept is not None:
            _check_settings(self.folder.path, kept.settings, self.settings)
            if kept.identity != self.identity:
                raise RunConflict(
                    f"{self.checkpoint} was made from another model or other data: restore them, "
                    "or use another folder"
                )
            rounds, evaluations = self._told()
            if len(rounds) >= kept.position:
                self.rounds = rounds[: kept.position]
                self.evaluations = [e for e in evaluations if e.position <= kept.position]
                self.federation.restore(kept.position, kept.weights, kept.state)

    def _told(self) -> tuple[list[Round], list[Evaluation]]:
        """The content of metrics.jsonl; empty if it is damaged."""
        try:
            return self.folder.read_metrics()
        except ProtocolError:
            return [], []

    def loop(self) -> Loop:
        """The loop over the remaining rounds."""
        return Loop(
            self.folder,
            self.settings,
            self.observer,
            rounds=lambda start: self.rounds[start:],
            evaluations=lambda: self.evaluations,
            record=lambda *row: self.evaluations.append(Evaluation(*row)),
            round=self._round,
            summarise=self._summary,
            measure=self._measure,
            keep=self._keep,
        )

    def _round(self) -> None:
        try:
            done = self.federation.round()
        except NonFiniteLoss as error:
            raise _with_remedy(error) from error
        losses = [each.loss for each in [*self.rounds, done] if each.loss is not None]
        first, last = losses[:-1][:GUARD_ROUNDS], losses[-GUARD_ROUNDS:]
        problem = excess(first, last, self.settings.divergence_factor)
        if problem is not None:
            text = f"round {done.round}: {problem}."
            raise _with_remedy(Diverged(text, round=done.round))
        self.rounds.append(done)

    def _measure(self, split: str) -> dict[str, float]:
        count = self.settings.client_examples or None
        try:
            return self.federation.measure(split, count, self.observer)
        except Diverged as error:
            raise _with_remedy(error) from error

    def _keep(self, position: int) -> None:
        if self.settings.eval_every and position % self.settings.eval_every == 0:
            facts, federation = self.settings.facts(), self.federation
            weights, state = federation.replica.weights, federation.server.state
            Checkpoint(position, facts, self.identity, weights, state).save(self.checkpoint)

    def _summary(self) -> Summary:
        replica = self.federation.replica
        return compose(
            self.rounds,
            self.evaluations,
            run=chain_root(canonical_json(self.identity, "identity").encode()).hex(),
            bytes_up=sum(done.bytes_up for done in self.rounds),
            bytes_down=sum(done.bytes_down for done in self.rounds),
            paper=len(self.rounds) * 2 * SCALAR_BYTES * replica.numel,
            messages=(0, 0),
            answered=sum(len(done.clients) for done in self.rounds),
            weights=replica.numel,
            digest=replica.digest(),
            chain=None,
            source=self.federation.workload.source,
            machine={
                "device": str(replica.weights.device),
                "backend": replica.backend,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "flwr": version("flwr"),
            },
            gpu=torch.cuda.max_memory_allocated(),
            settings=self.settings.facts(),
        )


def _with_remedy(error: Diverged) -> Diverged:
    remedy = "Start again in another folder with a smaller lr or, if the method has one, server_lr."
    return type(error)(f"{error} {remedy}", round=error.round, client=error.client)
