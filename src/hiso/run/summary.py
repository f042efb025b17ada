"""Computes the summary of a run."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Evaluation
from hiso.ring.messages import SCALAR_BYTES, paper_bytes
from hiso.run.results import Round, Summary, kept_position, rounds_of


def summarise(
    ledger: Ledger,
    source: str,
    *,
    weights: int,
    digest: int | None,
    machine: Mapping[str, Any],
    gpu: int | None = None,
) -> Summary:
    """The summary of a run that has a ledger.

    Args:
        ledger: The ledger.
        source: A description of the source of the data.
        weights: Number of trainable weights.
        digest: Digest of the replica at the end of the log; None if it is not known.
        machine: A description of the machine.
        gpu: Peak bytes of torch's memory on a GPU; None without a model.
    """
    up, down = ledger.traffic()
    return compose(
        rounds_of(ledger),
        ledger.evaluations(),
        run=ledger.run,
        bytes_up=up,
        bytes_down=down,
        paper=sum(
            paper_bytes(1, record.steps, int(record.direction.max()) + 1)
            for record in ledger.each_record()
        ),
        messages=ledger.message_bytes(),
        answered=ledger.answered(),
        weights=weights,
        digest=digest,
        chain=ledger.chain_at(ledger.position),
        source=source,
        machine=machine,
        gpu=gpu,
        settings=ledger.settings,
        kept=kept_position(ledger) if ledger.settings.get("keep") == "best" else None,
    )


def compose(
    rounds: Sequence[Round],
    evaluations: Sequence[Evaluation],
    *,
    run: str,
    bytes_up: int,
    bytes_down: int,
    paper: int,
    messages: tuple[int, int],
    answered: int,
    weights: int,
    digest: int | None,
    chain: bytes | None,
    source: str,
    machine: Mapping[str, Any],
    gpu: int | None,
    settings: Mapping[str, Any],
    kept: int | None = None,
) -> Summary:
    """The summary of a run, from its parts; for runs without a ledger.

    Args:
        rounds: All rounds.
        evaluations: All evaluations.
        run: The run's id.
        bytes_up: Bytes sent up, over all clients and rounds.
        bytes_down: Bytes sent down, over all clients and rounds.
        paper: `paper_bytes`.
        messages: Bytes up and down of complete messages.
        answered: Number of replies in all rounds.
        weights: Number of trainable weights.
        digest: Digest of the replica at the end.
        chain: Chain hash of the whole log; None if there is no log.
        source: A description of the source of the data.
        machine: A description of the machine.
        gpu: Peak bytes of torch's memory on a GPU; None without a model.
        settings: The settings at the end.
        kept: The position of the run's final model; None for the end.
    """
    before, after = (
        _metrics(evaluations, 0),
        _metrics(evaluations, len(rounds) if kept is None else kept),
    )
    fedavg = SCALAR_BYTES * weights * sum(len(done.clients) for done in rounds)
    message_up, message_down = messages
    return Summary(
        run=run,
        rounds=len(rounds),
        accuracy_before=before.get("accuracy"),
        accuracy_after=after.get("accuracy"),
        loss_before=before.get("loss"),
        loss_after=after.get("loss"),
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        paper_bytes=paper,
        message_bytes_up=message_up,
        message_bytes_down=message_down,
        per_round_and_worker=shares(
            answered,
            bytes_up=bytes_up,
            bytes_down=bytes_down,
            message_bytes_up=message_up,
            message_bytes_down=message_down,
        ),
        fedavg_bytes_up=fedavg,
        fedavg_bytes_down=fedavg,
        seconds_per_round=_median(done.seconds for done in rounds),
        forward_seconds_per_round=_median(done.forward_seconds for done in rounds),
        peak_memory_bytes=peak_memory(),
        digest=None if digest is None else f"{digest:016x}",
        chain=None if chain is None else chain.hex(),
        trainable_weights=weights,
        metrics_before=before,
        metrics_after=after,
        data=source,
        machine={**machine, "hiso": version("hiso"), "python": platform.python_version()},
        settings=dict(settings),
        kept=kept,
        peak_gpu_memory_bytes=gpu,
    )


def shares(answered: int, **sizes: int) -> dict[str, float]:
    """Each of the sizes, divided by the number of replies."""
    return {name: size / max(answered, 1) for name, size in sizes.items()}


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
