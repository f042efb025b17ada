"""One race: a hiso federation on one problem, until the loss is a fraction of its start."""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import Diverged
from hiso.lab.theory.curvature.federation import set_state
from hiso.lab.theory.dimension.problems import Separable, Shard, Shifts
from hiso.lab.theory.dimension.spectra import Groups
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server

_BLOWN_UP = 10


@dataclass(frozen=True)
class Outcome:
    """The result of a race.

    Attributes:
        rounds: Rounds until the target, or None.
        loss: The last loss, as a fraction of the initial one.
        end: How the race ended; "blown up" means a loss of ten times the start, or not finite.
        digest: Fingerprint of the replica at the end.
        seconds: Wall time.
    """

    rounds: int | None
    loss: float
    end: Literal["reached", "limit", "blown up"]
    digest: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def race(
    problem: Separable,
    method: Method,
    rules: RoundSettings,
    shifts: Shifts,
    *,
    target: float,
    limit: int,
    seed: int,
    h: Groups | None = None,
) -> Outcome:
    """Runs rounds until f is `target` times its start.

    Args:
        problem: The problem, whose weights become the replica's.
        method: The method.
        rules: Clients, sampling, directions, mu.
        shifts: The differences between clients and batches.
        target: Fraction of the initial loss, measured without noise after every round.
        limit: Rounds after which to stop.
        seed: Key of directions and sampling.
        h: Initial value of the method's state `h`, by group; by default the method's own.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity(method=method, seed=seed, model="separable")
        with Ledger.create(Path(folder) / "ledger.sqlite", identity, {}) as ledger:
            replica = Replica(problem, identity)
            weights = replica.weights[: problem.spectrum.d]
            if h is not None:
                set_state(replica, "h", torch.from_numpy(problem.spectrum.spread(h)).float())
            server = Server(ledger, rules)
            shards = [Shard(i, shifts, problem.spectrum) for i in range(rules.clients)]
            simulation = Simulation(server, replica, shards, problem.losses)
            start, done, end = problem.loss(weights), 0, "limit"
            loss = start
            while done < limit:
                try:
                    simulation.round()
                except Diverged:
                    end = "blown up"
                    break
                done, loss = done + 1, problem.loss(weights)
                if not loss <= _BLOWN_UP * start:
                    end = "blown up"
                    break
                if loss <= target * start:
                    end = "reached"
                    break
            digest = f"{replica.digest():016x}"
    return Outcome(
        rounds=done if end == "reached" else None,
        loss=float(min(loss / start, _BLOWN_UP)) if loss == loss else _BLOWN_UP,
        end=end,
        digest=digest,
        seconds=time.perf_counter() - started,
    )
