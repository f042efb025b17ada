"""What came of a run, in numbers."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch

from hiso.core.replica import Replica
from hiso.federation.ledger import Ledger
from hiso.federation.protocol import SCALAR_BYTES, paper_bytes


def summarise(ledger: Ledger, replica: Replica, source: str) -> dict[str, Any]:
    """The content of summary.json.

    `bytes_up` and `bytes_down` count 4 bytes for every float32 that travels for the method's
    sake, over all clients and attempts: up, the directional derivatives (and curvatures) of the
    replies; down, the coefficients and changed hyper-parameters of the records that each client
    lacked, catch-up included. The loss that a client reports for people, fingerprints and
    framing are not counted. `paper_bytes` is the paper's count 2·R·τ·P·4, for comparison;
    `fedavg_bytes_*` is what sending float32 weights both ways would have taken.
    Times are medians over rounds, evaluation left out.
    """
    rows = ledger.rounds()
    up, down = ledger.traffic()
    before, after = _metrics(ledger, 0), _metrics(ledger, ledger.position)
    weights = SCALAR_BYTES * replica.numel * sum(len(row.clients) for row in rows)
    return {
        "run": ledger.run,
        "rounds": ledger.position,
        "accuracy_before": before.get("accuracy"),
        "accuracy_after": after.get("accuracy"),
        "loss_before": before.get("loss"),
        "loss_after": after.get("loss"),
        "bytes_up": up,
        "bytes_down": down,
        "paper_bytes": sum(
            paper_bytes(1, record.steps, int(record.direction.max()) + 1)
            for record in ledger.records()
        ),
        "fedavg_bytes_up": weights,
        "fedavg_bytes_down": weights,
        "seconds_per_round": _median(row.seconds["round"] for row in rows),
        "forward_seconds_per_round": _median(row.seconds["forward"] for row in rows),
        "peak_memory_bytes": peak_memory(),
        "peak_gpu_memory_bytes": torch.cuda.max_memory_allocated(),
        "digest": f"{replica.digest():016x}",
        "chain": replica.chain.hex(),
        "trainable_weights": replica.numel,
        "metrics_before": before,
        "metrics_after": after,
        "data": source,
        "machine": {
            "device": str(replica.weights.device),
            "backend": replica.backend,
            "threads": torch.get_num_threads(),
            "hiso": version("hiso"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "settings": ledger.settings,
    }


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _metrics(ledger: Ledger, position: int) -> dict[str, float]:
    found = [e for e in ledger.evaluations() if (e.position, e.split) == (position, "test")]
    return found[0].metrics if found else {}


def _median(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.median(known) if known else None
