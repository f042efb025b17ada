"""What came of a run, in numbers."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from hiso.federation.ledger import Ledger, RoundRow
from hiso.federation.protocol import SCALAR_BYTES, paper_bytes
from hiso.federation.runfile import Evaluation


def summarise(
    ledger: Ledger, source: str, *, weights: int, digest: int | None, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of summary.json.

    `bytes_up` and `bytes_down` count 4 bytes for every float32 that travels for the method's
    sake, over all clients and attempts: up, the directional derivatives (and curvatures) of the
    replies; down, the coefficients and changed hyper-parameters of the records that each client
    lacked, catch-up included. The loss that a client reports for people, fingerprints and
    framing are not counted. `paper_bytes` is the paper's count 2·R·τ·P·4, for comparison;
    `fedavg_bytes_*` is what sending float32 weights both ways would have taken.
    `message_bytes_*` are those of whole messages, framing, hashes and losses included, as they
    were handed to the transport; a run in one process sends none.
    Times are medians over rounds, evaluation left out.

    Args:
        ledger: The ledger.
        source: Where the data came from, in words.
        weights: Number of trainable weights.
        digest: That of the replica at the end of the log; None if nobody has told it.
        machine: Facts about where it was computed.
    """
    up, down = ledger.traffic()
    return compose(
        ledger.rounds(),
        ledger.evaluations(),
        run=ledger.run,
        bytes_up=up,
        bytes_down=down,
        paper=sum(
            paper_bytes(1, record.steps, int(record.direction.max()) + 1)
            for record in ledger.records()
        ),
        messages=ledger.message_bytes(),
        weights=weights,
        digest=digest,
        chain=ledger.chain_at(ledger.position),
        source=source,
        machine=machine,
        settings=ledger.settings,
    )


def compose(
    rows: Sequence[RoundRow],
    evaluations: Sequence[Evaluation],
    *,
    run: str,
    bytes_up: int,
    bytes_down: int,
    paper: int,
    messages: tuple[int, int, int],
    weights: int,
    digest: int | None,
    chain: bytes | None,
    source: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of summary.json, for whoever has no ledger; see `summarise`.

    Args:
        rows: All rounds.
        evaluations: All evaluations.
        run: The run's id.
        bytes_up: Over all clients and rounds.
        bytes_down: Over all clients and rounds.
        paper: `paper_bytes`.
        messages: Bytes up and down of whole messages, and how many times a client was asked.
        weights: Number of trainable weights.
        digest: That of the replica at the end.
        chain: Chain hash of the whole log; None if there is none.
        source: Where the data came from, in words.
        machine: Facts about where it was computed.
        settings: The settings in force.
    """
    before, after = _metrics(evaluations, 0), _metrics(evaluations, len(rows))
    fedavg = SCALAR_BYTES * weights * sum(len(row.clients) for row in rows)
    message_up, message_down, asked = messages
    return {
        "run": run,
        "rounds": len(rows),
        "accuracy_before": before.get("accuracy"),
        "accuracy_after": after.get("accuracy"),
        "loss_before": before.get("loss"),
        "loss_after": after.get("loss"),
        "bytes_up": bytes_up,
        "bytes_down": bytes_down,
        "paper_bytes": paper,
        "message_bytes_up": message_up,
        "message_bytes_down": message_down,
        "message_bytes_per_round_and_worker": {
            "up": message_up / asked if asked else 0,
            "down": message_down / asked if asked else 0,
        },
        "fedavg_bytes_up": fedavg,
        "fedavg_bytes_down": fedavg,
        "seconds_per_round": _median(row.seconds.get("round") for row in rows),
        "forward_seconds_per_round": _median(row.seconds.get("forward") for row in rows),
        "peak_memory_bytes": peak_memory(),
        "digest": None if digest is None else f"{digest:016x}",
        "chain": None if chain is None else chain.hex(),
        "trainable_weights": weights,
        "metrics_before": before,
        "metrics_after": after,
        "data": source,
        "machine": {
            **machine,
            "hiso": version("hiso"),
            "python": platform.python_version(),
        },
        "settings": dict(settings),
    }


def peak_memory() -> int:
    """Peak resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _metrics(evaluations: Sequence[Evaluation], position: int) -> dict[str, float]:
    found = [e for e in evaluations if (e.position, e.split) == (position, "test")]
    return found[0].metrics if found else {}


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
