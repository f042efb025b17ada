"""`hiso.Federation`: trains any module on any data sets, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import default_collate

from hiso.core.identity import Dtype, Identity
from hiso.core.kernels import Backend
from hiso.core.measure.backward import Probing, mean_loss
from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Scheme
from hiso.core.method.base import Method
from hiso.core.noise import Noise
from hiso.core.replica.replica import Memory, Replica
from hiso.data.shards import Collate, DataShard
from hiso.engines.arguments import Arguments, check_arguments
from hiso.engines.replay import describe_model
from hiso.engines.simulation import Simulation
from hiso.errors import RoundAborted, RunConflict
from hiso.ring.aggregate import Weighting
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.schema import has_tables
from hiso.ring.server import Aborted, Closed, Server

Loss = Callable[[Any, Any], Any]
"""From the model and a batch: a mean loss, losses [B], or a pair of scores [B, C], labels [B]."""


class Federation:
    """A federated run of any module, with all clients in this process.

    Until `close`, the module's trainable parameters belong to the federation, and the module is in
    eval mode. If the ledger already holds this run, the federation resumes it: pass the untrained
    base model again, and the same arguments.

    Example:
        >>> with Federation(
        ...     network(), HiSo(lr=1e-2), loss=lambda m, b: cross_entropy(m(b[0]), b[1]),
        ...     shards=datasets, batch_size=32, sample=2, directions=5, mu=1e-3,
        ...     ledger="toy.sqlite",
        ... ) as fed:
        ...     for r in fed.rounds(200):
        ...         print(r.number, r.loss)

    Attributes:
        model: The module. After a round it has the new weights.
        replica: The replica of the module, at the end of the log.
        ledger: The log.
        server: The server. Its `settings` apply from the next round on: assign new ones for a
            schedule.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        loss: Loss,
        shards: Sequence[Any],
        batch_size: int,
        sample: int,
        directions: int,
        mu: float,
        seed: int = 0,
        ledger: str | Path | None = None,
        local_steps: int = 1,
        scheme: Scheme = "forward",
        per_client: bool = False,
        weighting: Weighting = "plain",
        normalise: float = 0.0,
        divergence_factor: float | None = 3.0,
        noise: Noise = "binomial",
        dtype: Dtype = "float32",
        memory: Memory = "full",
        backend: Backend = "auto",
        collate: Collate = default_collate,
        probe: Probing | Sequence[Probing] = "forward",
        loss_name: str | None = None,
        loss_version: int | str = 1,
    ) -> None:
        """Resumes the run in the ledger, or starts a new run.

        Args:
            model: The base model: a module with at least one parameter with `requires_grad`.
            method: The method; it may be your own.
            loss: Called with the module and a batch, with gradients disabled except for a backward
                pass. Returns a mean loss, losses [B], or a pair of scores [B, C] and labels [B],
                whose cross-entropy is then the loss. Must be deterministic: the same weights and
                batch must give the same result.
            shards: Each client's data, by its index: a list of examples, a map-style torch
                `Dataset`, or a Hugging Face data set.
            batch_size: Examples per client and local step, B; if a shard is smaller, the batch is
                the whole shard.
            sample: Clients sampled in a round, m.
            directions: Directions per local step, P.
            mu: Perturbation size μ.
            seed: Key of directions, sampling and batches, unsigned 64 bits.
            ledger: The ledger's file; by default a temporary file, which `close` deletes.
            local_steps: Local steps of a round, τ.
            scheme: Kind of finite differences; see docs/methods.md.
            per_client: Whether every client measures along its own directions.
            weighting: Weights of the clients in the mean: equal ("plain"), or by number of
                examples ("examples").
            normalise: Update rate ν of a mean diagonal that divides `lr`; 0 for none.
            divergence_factor: A round whose loss exceeds this many times the loss of the first
                rounds is not recorded, and raises `Diverged`; None for no limit.
            noise: Distribution of the directions' elements.
            dtype: Precision of forward passes. While the loss is measured, the model's trainable
                parameters have this dtype, so `loss` must cast its inputs. Weights are float32.
            memory: "full", or "lean" for no copy of the weights; see `Replica`.
            backend: Kernels; see `Replica`.
            collate: Makes a batch of a list of items; torch's by default.
            probe: How clients compute their scalars, one word for all clients or one for each:
                "forward", or "backward" for exact derivatives by one backward pass per local step.
                This choice is not part of the run's identity, and may differ when the run is
                resumed.
            loss_name: The loss's name in the identity; by default its qualified name.
            loss_version: The loss's version in the identity. Change it when you change what the
                loss computes: a ledger that was created with the old version is then refused.

        Raises:
            SettingsError: Lists all problems with the arguments; or `loss` returns an unsupported
                value.
            RunConflict: The ledger holds another run, or a run with other settings. The message
                lists the differences. The ledger is unchanged.
            ProtocolError: The file is not a ledger, or is damaged.
            StorageError: The file cannot be written.
        """
        given = check_arguments({k: v for k, v in locals().items() if k != "self"})
        identity = replace(given.identity, model=describe_model(model))
        self.model, self._loss, self._closed = model, loss, False
        shard = [
            DataShard(data, client=i, batch_size=batch_size, seed=seed, collate=collate)
            for i, data in enumerate(shards)
        ]
        with ExitStack() as undo, ExitStack() as files:
            path = given.ledger or Path(files.enter_context(TemporaryDirectory())) / "ledger.sqlite"
            begun = path.is_file() and has_tables(path)
            if begun:
                self.ledger = files.enter_context(Ledger.open(path, method=type(method)))
                _check_same(self.ledger, identity, given)
            self.replica = Replica(model, identity, memory=memory, backend=backend)
            undo.callback(self.replica.release)
            self._try(shard[0], method, backward=bool(given.backward_clients))
            if not begun:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.ledger = files.enter_context(Ledger.create(path, identity, given.stored))
            self.server = Server(self.ledger, given.rounds)
            by_backward = dict.fromkeys(given.backward_clients, partial(loss, model))
            self._simulation = Simulation(
                self.server, self.replica, shard, self._losses, backward=by_backward
            )
            self._files = files.pop_all()
            undo.pop_all()
        self._digest = self.replica.digest()

    def rounds(self, total: int) -> Iterator[Closed]:
        """Runs rounds until the log has `total`, earlier ones included; yields each closed round.

        After an interruption the same call runs only the remaining rounds, if any. Each yielded
        `Closed` has `number`, `loss` (the mean loss of the round's clients before its step),
        `clients`, and more.

        Raises:
            Diverged: As `round`.
            RuntimeError: The federation is closed.
        """
        self._check_open()
        while self.ledger.position < total:
            yield self.round()

    def round(self) -> Closed:
        """Runs one more round.

        An exception leaves the log unchanged; the next call measures the round again.

        Raises:
            Diverged: A loss is not finite, or the round's loss has exploded.
            RuntimeError: The federation is closed.
        """
        self._check_open()
        closed = self._simulation.round()
        if isinstance(closed, Aborted):
            number = self.ledger.position
            raise RoundAborted(
                f"round {number} was aborted: {closed.reason}",
                round=number,
                attempts=closed.attempt + 1,
                reason=closed.reason,
            )
        return closed

    @property
    def digest(self) -> int:
        """Fingerprint of weights and method state, unsigned 64 bits; fixed after `close`."""
        return self._digest if self._closed else self.replica.digest()

    @property
    def label_bias(self) -> NDArray[np.float64] | None:
        """b, float64 [C], to be added to the model's scores; None without `hiso.label_bias`."""
        return self.replica.biases

    def close(self) -> None:
        """Closes the ledger, and makes the module an ordinary one again, with the last weights.

        The module is in eval mode, and its trainable parameters are float32. A second call does
        nothing.
        """
        if self._closed:
            return
        self._digest, self._closed = self.replica.digest(), True
        with self._files:
            self.replica.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Closes; after an error only the ledger: the module may be between two positions."""
        if kind is None:
            self.close()
        else:
            self._closed = True
            self._files.__exit__(kind, error, tb)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the federation is closed: make another one on its ledger")

    @torch.no_grad()
    def _losses(self, batches: Sequence[Any]) -> list[Any]:
        return [self._loss(self.model, batch) for batch in batches]

    def _try(self, shard: DataShard, method: Method, *, backward: bool) -> None:
        """Checks, before anything is written, that the loss returns a supported value."""
        batch = shard.batch(0, 0)
        outcome = Outcome.of(self._losses([batch])[0])
        if backward:
            with torch.inference_mode(False), torch.enable_grad():
                mean_loss(self._loss(self.model, batch))
        if method.needs == "scores" and outcome.tokens is None:
            outcome.labelled()


def _check_same(ledger: Ledger, identity: Identity, given: Arguments) -> None:
    """Checks that the run in a ledger is the requested one.

    Raises:
        RunConflict: The ledger holds another run.
    """
    name, mine = ledger.facts["method"]["name"], identity.method.name
    if name != mine:  # its identity cannot be read with this method's class
        different = [f"method: {name}, {mine}"]
    else:
        different = ledger.identity.differences(identity)
    if different:
        raise RunConflict(
            f"{ledger.path} holds another run (in the run, then here):\n  "
            + "\n  ".join(different)
            + "\nGive the same model, untrained, and the same arguments; or another ledger."
        )
    stored = ledger.settings
    settings = {
        name: (stored[name], value)
        for name, value in given.stored.items()
        if name in stored and stored[name] != value
    }
    if settings:
        lines = [f"  {name}: {old!r}, {new!r}" for name, (old, new) in settings.items()]
        raise RunConflict(
            f"{ledger.path} holds a run with other settings (in the run, then here):\n"
            + "\n".join(lines)
            + "\nGive the same values to resume; to change them from some round on, assign "
            "server.settings.",
            settings=settings,
        )
