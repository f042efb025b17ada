"""A baseline from its settings to its summary, in the format of hiso's own runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hiso.baselines.checkpoint import Checkpoint, read_checkpoint
from hiso.baselines.settings import ZEROTH_ORDER, BaselineSettings, parse_baseline
from hiso.core.identity import canonical_json
from hiso.core.methods import ZoSgd
from hiso.core.probe import passes
from hiso.core.record import chain_root
from hiso.core.replica import Replica
from hiso.errors import Diverged, LoadError, NonFiniteLoss, RunConflict
from hiso.federation.guard import GUARD_ROUNDS, excess
from hiso.federation.ledger import RoundRow
from hiso.federation.protocol import SCALAR_BYTES
from hiso.federation.runfile import Evaluation
from hiso.run.folder import RunFolder, evaluation_line, in_order, round_line
from hiso.run.observer import Observer, Silent
from hiso.run.summary import compose
from hiso.run.workload import Workload, load_workload, make_replica

BACKWARD = 2
"""Forward passes that a backward pass counts as."""


def train(
    given: Mapping[str, Any], out: Path, *, observer: Observer | None = None
) -> dict[str, Any]:
    """Trains a baseline from start to end in the folder `out`; gives the summary.

    Data, splits, partition, initial weights, the clients of each round and their batches are those
    of a hiso run with the same settings and seed. `metrics.jsonl` and `summary.json` have the
    form of a hiso run's, with

    - `bytes_up`, `bytes_down`: 4 bytes for every trainable weight and sampled client, each way:
      the client's weights up, the global ones down. The server's moments stay at the server, so
      FedAdam and its kin send what FedAvg sends, unlike in some tables;
    - `passes`: forward passes of one client's batch, over all sampled clients, where a backward
      pass counts as two: 3 per local step, or P + 1 (2P with central differences) for `fedzo`;
    - `forward_seconds`: with the backward passes;
    - `paper_bytes`: those of one client that takes part in every round, both ways;
    - `chain`: None, since there is no log of scalars.

    A training that was stopped goes on from its last evaluation on the tuning split, where
    `checkpoint.safetensors` (weights and moments) was kept; one that was stopped before begins
    again. The checkpoint is deleted at the end. What is finished is not trained again.

    Args:
        given: Settings by name; see `BaselineSettings`.
        out: The folder; made if it is missing.
        observer: Who watches.

    Raises:
        SettingsError: The settings are wrong.
        RunConflict: The folder holds something else. It is as it was.
        LoadError: Model, data or Flower are missing.
        Diverged: The loss is not finite or has exploded; `metrics.jsonl` tells until when.
    """
    observer = observer or Silent()
    settings, folder = parse_baseline(given), RunFolder(out)
    if folder.has_run():
        raise RunConflict(f"{out} holds a run of another kind, with a ledger: use another folder")
    summary = folder.read_summary()
    if summary is not None:
        _check_settings(out, summary["settings"], settings)
        return summary
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
        run.finish()
        return run.close()


def _check_settings(out: Path, stored: Mapping[str, Any], settings: BaselineSettings) -> None:
    asked = json.loads(json.dumps(settings.facts()))
    different = [
        f"  {key}: {stored.get(key)!r} there, {asked.get(key)!r} asked for"
        for key in {**stored, **asked}
        if stored.get(key) != asked.get(key)
    ]
    if different:
        raise RunConflict(
            f"{out} holds a training with other settings:\n"
            + "\n".join(different)
            + "\nUse another folder, or delete this one."
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
        from hiso.baselines.federation import Federation

        self.folder, self.settings, self.observer = folder, settings, observer
        self.federation = Federation(settings, workload, replica)
        self.identity = json.loads(workload.identity.text) | {
            "method": {"name": settings.method, "hyper": settings.hyper, "feed": None}
        }
        self.checkpoint = folder.path / "checkpoint.safetensors"
        self.rows: list[RoundRow] = []
        self.evaluations: list[Evaluation] = []

    def catch_up(self) -> None:
        """Takes up the checkpoint and the log up to it, or starts anew.

        Raises:
            RunConflict: The checkpoint is that of another training.
        """
        kept = read_checkpoint(self.checkpoint)
        if kept is not None:
            _check_settings(self.folder.path, kept.settings, self.settings)
            if kept.identity != self.identity:
                raise RunConflict(
                    f"{self.checkpoint} was made from another model or other data: restore them, "
                    "or use another folder"
                )
            rows, evaluations = _read_metrics(self.folder.metrics, kept.position)
            if [row.round for row in rows] == list(range(kept.position)):
                self.rows, self.evaluations = rows, evaluations
                self.federation.restore(kept.position, kept.weights, kept.state)
        self.folder.write_metrics(in_order(map(self._line, self.rows), self.evaluations))

    def finish(self) -> None:
        """Runs the rounds that are left, with evaluations before, in between and after."""
        if not self.rows:
            self._evaluate_dev()
            self._evaluate_once("test")
        self.observer.started(len(self.rows), self.settings.rounds)
        for row in self.rows:
            self.observer.round(row)
        while len(self.rows) < self.settings.rounds:
            self._evaluate_dev()
            row = self._round()
            self.rows.append(row)
            self.folder.append_metrics(self._line(row))
            self.observer.round(row)
        self._evaluate_dev()
        self._evaluate_once("test")
        if self.settings.client_examples:
            for client in range(self.settings.clients):
                self._evaluate_once(f"client {client}")

    def close(self) -> dict[str, Any]:
        """Writes the summary."""
        replica = self.federation.replica
        summary = compose(
            self.rows,
            self.evaluations,
            run=chain_root(canonical_json(self.identity, "identity").encode()).hex(),
            bytes_up=sum(row.bytes_up for row in self.rows),
            bytes_down=sum(row.bytes_down for row in self.rows),
            paper=len(self.rows) * 2 * SCALAR_BYTES * replica.numel,
            messages=(0, 0),
            answered=sum(len(row.clients) for row in self.rows),
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
            settings=self.settings.facts(),
        ) | {"peak_gpu_memory_bytes": torch.cuda.max_memory_allocated()}
        self.folder.write_summary(summary)
        self.checkpoint.unlink(missing_ok=True)
        return json.loads(json.dumps(summary))

    def _round(self) -> RoundRow:
        try:
            row = self.federation.round()
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error} {_REMEDY}") from error
        losses = [row.loss for row in [*self.rows, row] if row.loss is not None]
        first, last = losses[:-1][:GUARD_ROUNDS], losses[-GUARD_ROUNDS:]
        problem = excess(first, last, self.settings.divergence_factor)
        if problem is not None:
            raise Diverged(f"round {row.round}: {problem}. {_REMEDY}")
        return row

    def _line(self, row: RoundRow) -> dict[str, Any]:
        s = self.settings
        zeroth = s.method in ZEROTH_ORDER
        a_step = passes(s.perturbations, s.scheme or "forward") if zeroth else 1 + BACKWARD
        return round_line(row, len(row.clients) * s.local_steps * a_step)

    def _evaluate_dev(self) -> None:
        position, every = len(self.rows), self.settings.eval_every
        if every and position % every == 0:
            new = self._evaluate_once("dev")
            if new and position:
                facts, federation = self.settings.facts(), self.federation
                weights, state = federation.replica.weights, federation.server.state
                Checkpoint(position, facts, self.identity, weights, state).save(self.checkpoint)

    def _evaluate_once(self, split: str) -> bool:
        """Evaluates here, unless it has been done; whether it had not."""
        position = len(self.rows)
        if any((e.position, e.split) == (position, split) for e in self.evaluations):
            return False
        count = self.settings.client_examples or None
        try:
            metrics = self.federation.measure(split, count, self.observer)
        except Diverged as error:
            raise Diverged(f"{error} {_REMEDY}") from error
        evaluation = Evaluation(position, split, metrics)
        self.evaluations.append(evaluation)
        self.folder.append_metrics(evaluation_line(evaluation))
        self.observer.evaluated(evaluation)
        return True


_REMEDY = "Start again in another folder with a smaller lr or, if the method has one, server_lr."


def _read_metrics(path: Path, position: int) -> tuple[list[RoundRow], list[Evaluation]]:
    """What metrics.jsonl says of the rounds and evaluations up to a position."""
    rows: list[RoundRow] = []
    evaluations: list[Evaluation] = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break  # cut short by a kill; what counts was written before
        if line["kind"] == "round":
            seconds = {"round": line["seconds"], "forward": line["forward_seconds"]}
            size = line["bytes_up"], line["bytes_down"]
            row = RoundRow(line["round"], line["loss"], *size, seconds, line["clients"], {})
            if row.round < position:
                rows.append(row)
        elif line["position"] <= position:
            metrics = {k: v for k, v in line.items() if k not in ("kind", "position", "split")}
            evaluations.append(Evaluation(line["position"], line["split"], metrics))
    return rows, evaluations
