"""A round against its bare forward passes, on SmolLM2-135M and Rotten Tomatoes.

    python benchmarks/round.py [--json]

float32, batch 16, P = 5, 2 of 6 clients, joint batches. The bare passes are P + 1 calls of the
loss on the very batches of the round, at weights that do not move; nothing else happens between.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from timing import interleaved, report

from hiso import HiSo, Replica, ZoSgd
from hiso.core.method import Method
from hiso.engines.simulation import Simulation
from hiso.federation.ledger import Ledger
from hiso.federation.server import Server
from hiso.federation.settings import RoundSettings
from hiso.language.objective import Objective
from hiso.run.observer import Silent
from hiso.run.settings import Settings
from hiso.run.workload import load_workload

ROUNDS, DIRECTIONS = 5, 5


def measure(method: Method, folder: Path) -> dict[str, float]:
    settings = Settings(perturbations=DIRECTIONS, lr=method.hyper["lr"], method=method.name)
    workload = load_workload(settings, method, Silent())
    with Ledger.create(folder / method.name, workload.identity, {}) as ledger:
        replica = Replica(workload.lm.model, method, seed=0, chain=ledger.root)
        objective = Objective(workload.lm, workload.task, rows=replica.rows)
        rounds = RoundSettings(clients=6, sample=2, steps=1, directions=DIRECTIONS, mu=1e-3)
        server = Server(ledger, rounds, curvature=False)
        simulation = Simulation(server, replica, workload.shards, objective)

        def bare() -> None:
            """The passes of the round that is about to run."""
            plans = server.ask()
            batches = [workload.shards[plan.client].batch(plan.round, 0) for plan in plans]
            for _ in range(DIRECTIONS + 1):
                objective(batches)

        seconds = interleaved({"bare": bare, "round": simulation.round}, ROUNDS)
    return {
        f"{method.name}: seconds a round": seconds["round"],
        f"{method.name}: seconds of its bare passes": seconds["bare"],
        f"{method.name}: round over passes": seconds["round"] / seconds["bare"],
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(HiSo(), Path(folder)) | measure(ZoSgd(), Path(folder))
    report("round", figures)


if __name__ == "__main__":
    main()
