"""Estimates the cost of a run from one timed forward pass, before anything is written."""

from __future__ import annotations

import time
from collections.abc import Callable

from hiso.core.measure.backward import BACKWARD_PASSES
from hiso.core.measure.probe import passes
from hiso.core.method.base import Method
from hiso.core.replica.replica import Replica
from hiso.ring.messages import SCALAR_BYTES
from hiso.run.results import Estimate
from hiso.run.settings import Settings
from hiso.run.summary import peak_memory
from hiso.run.workload.base import Workload

_LEDGER_BYTES, _ROUND_BYTES = 80_000, 900
"""Approximate size of a run's files at the start, and growth per round without its scalars."""


def estimate(
    settings: Settings, method: Method, workload: Workload, replica: Replica, position: int
) -> Estimate:
    """Times forward passes of the first batches, at the replica's weights, and extrapolates.

    Nothing is changed. Clients that share a forward pass count as one pass.
    """
    objective = workload.objective(replica.rows, joint=settings.joint)
    batches = [shard.batch(position, 0) for shard in workload.shards[: settings.sample]]
    replica.write()
    a_pass = _seconds(lambda: objective(batches))
    left = max(0, settings.rounds - position)
    forward = passes(
        settings.directions,
        settings.scheme or "forward",
        with_curvature=method.measures_curvature,
        scores=method.needs == "scores",
    )
    backward = settings.backward_clients >= settings.clients
    a_round = settings.local_steps * (BACKWARD_PASSES if backward else forward)
    an_example = a_pass / sum(len(batch.examples) for batch in batches)
    tunings = left // settings.eval_every + 1 if settings.eval_every else 0
    examples = tunings * len(workload.dev) + 2 * len(workload.test)
    kinds = 2 if method.measures_curvature else 1
    scalars = settings.local_steps * settings.directions * kinds + len(method.facts)
    streams = settings.sample if settings.per_client else 1
    up = left * settings.sample * scalars * SCALAR_BYTES
    down = left * settings.clients * streams * scalars * SCALAR_BYTES
    states = 1 + len(method.state)
    kept = min(2, left // settings.snapshot_every) if settings.snapshot_every else 0
    snapshots = kept * replica.weights.numel() * SCALAR_BYTES * states
    disk = (0 if position else _LEDGER_BYTES) + left * _ROUND_BYTES + 2 * up + snapshots
    seconds = left * a_round * a_pass + examples * an_example
    return Estimate(left, seconds, up, down, peak_memory(), disk)


def _seconds(work: Callable[[], object]) -> float:
    """Seconds of a call that returns a finished result, after one call to warm up."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun
