"""The results of a run, and their format in metrics.jsonl and summary.json.

All readers of these files use the classes here. Unknown keys are ignored. A key that earlier
versions did not write has the default of its field; any other key must be present.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from hiso.core.measure.backward import BACKWARD_PASSES
from hiso.core.measure.probe import passes
from hiso.core.method.registry import METHODS
from hiso.errors import ProtocolError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Evaluation


@dataclass(frozen=True)
class Round:
    """A round that was committed: a line of metrics.jsonl.

    Attributes:
        round: The number of the round, from 0.
        loss: Mean loss of its clients before its step; None if it is not known.
        clients: Clients whose replies were used, ascending.
        bytes_up: Bytes of its scalars or weights sent up, over all clients.
        bytes_down: The same for bytes sent down.
        passes: Forward passes of one client's batch, over all used clients; a backward pass counts
            as two. None in older files without this count.
        seconds: Wall time; None if it was not measured.
        forward_seconds: Wall time in forward passes; None if it was not measured.
    """

    round: int
    loss: float | None
    clients: list[int]
    bytes_up: int
    bytes_down: int
    passes: int | None = None
    seconds: float | None = None
    forward_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The results of a run: summary.json.

    Attributes:
        run: The run's id.
        rounds: Number of rounds.
        accuracy_before: On the test split at position 0; None if it was not measured.
        accuracy_after: The same at the end.
        loss_before: On the test split at position 0; None if it was not measured.
        loss_after: The same at the end.
        bytes_up: 4 bytes for every float32 that the method sends, over all clients and attempts:
            the directional derivatives (and curvatures) of the replies. Not counted: the loss that
            a client reports for display, fingerprints and framing.
        bytes_down: The same for the coefficients and changed hyper-parameters of the records that
            each client lacked, catch-up included.
        paper_bytes: The papers' count 2·R·τ·P·4, for comparison.
        message_bytes_up: Bytes of complete messages passed to the transport, including framing,
            hashes and losses, without `hello` messages. 0 for a run in one process and in older
            files.
        message_bytes_down: The same for messages sent down.
        per_round_and_worker: The bytes above and `sent_bytes`, divided by the number of valid
            replies; empty in older files.
        fedavg_bytes_up: Bytes that float32 weights would have taken.
        fedavg_bytes_down: The same for weights sent down.
        seconds_per_round: Median of the wall time, without evaluation; None if not measured.
        forward_seconds_per_round: Median of the time in forward passes; None if not measured.
        peak_memory_bytes: Peak resident memory of the process.
        digest: Digest of the replica at the end of the log, 16 hex digits; None if not known.
        chain: Chain hash of the whole log, in hex digits; None without a log of scalars.
        trainable_weights: Number of trainable weights.
        metrics_before: All metrics on the test split at position 0.
        metrics_after: All metrics on the test split at the end.
        data: A description of the source of the data.
        machine: A description of the machine.
        settings: The settings at the end.
        kept: The position of the model of `metrics_after`, if it is not the end (`keep` = best);
            digest and chain are those of the end.
        peak_gpu_memory_bytes: Peak of torch's memory on a GPU; None without a model.
        sent_bytes_up: Total bytes sent by a deployment's nodes, as counted by Flower; otherwise
            None.
        sent_bytes_down: The same for bytes sent to the nodes.
    """

    run: str
    rounds: int
    accuracy_before: float | None
    accuracy_after: float | None
    loss_before: float | None
    loss_after: float | None
    bytes_up: int
    bytes_down: int
    paper_bytes: int
    message_bytes_up: int = 0
    message_bytes_down: int = 0
    per_round_and_worker: dict[str, float] = field(default_factory=dict)
    fedavg_bytes_up: int
    fedavg_bytes_down: int
    seconds_per_round: float | None
    forward_seconds_per_round: float | None
    peak_memory_bytes: int
    digest: str | None
    chain: str | None
    trainable_weights: int
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    data: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    kept: int | None = None
    peak_gpu_memory_bytes: int | None = None
    sent_bytes_up: int | None = None
    sent_bytes_down: int | None = None


Told = TypeVar("Told")
_ROUND, _EVALUATION = TypeAdapter(Round), TypeAdapter(Evaluation)
_SUMMARY = TypeAdapter(Summary)
_WHERE_KNOWN = ("kept", "peak_gpu_memory_bytes", "sent_bytes_up", "sent_bytes_down")


@dataclass(frozen=True)
class Estimate:
    """The approximate cost of the remaining rounds.

    Attributes:
        rounds: Number of remaining rounds.
        seconds: Time of forward passes, including evaluations; the rest of a round is a few
            percent.
        bytes_up: Scalars from all clients.
        bytes_down: Scalars to all clients; each client needs those of every round.
        memory_bytes: Peak of resident memory so far, with model, state and one pass.
        disk_bytes: Growth of the run's folder, including snapshots.
    """

    rounds: int
    seconds: float
    bytes_up: int
    bytes_down: int
    memory_bytes: int
    disk_bytes: int


def encode_line(line: Round | Evaluation) -> dict[str, Any]:
    """A line of metrics.jsonl; the metrics of an evaluation are keys of the same object."""
    if isinstance(line, Round):
        return {"kind": "round", **_plain(line)}
    place = {"kind": "evaluation", "position": line.position, "split": line.split}
    return place | dict(sorted(line.metrics.items()))


def decode_line(line: Any) -> Round | Evaluation:
    """The round or evaluation in a line of metrics.jsonl.

    Raises:
        ProtocolError: The line is invalid; the message says why.
    """
    kind = line.get("kind") if isinstance(line, dict) else None
    if kind == "round":
        return _decoded(_ROUND.validate_python, line)
    if kind != "evaluation":
        raise ProtocolError(f"'kind' is {kind!r}, neither 'round' nor 'evaluation'")
    place = {key: line[key] for key in ("position", "split") if key in line}
    metrics = {key: value for key, value in line.items() if key not in (*place, "kind")}
    return _decoded(_EVALUATION.validate_python, place | {"metrics": metrics})


def encode_summary(summary: Summary) -> dict[str, Any]:
    """The content of summary.json; keys without a value for this kind of run are left out."""
    told = _plain(summary)
    return {k: v for k, v in told.items() if v is not None or k not in _WHERE_KNOWN}


def decode_summary(content: Any) -> Summary:
    """The summary in the content of summary.json.

    Raises:
        ProtocolError: The content is invalid; the message says why.
    """
    return _decoded(_SUMMARY.validate_python, content)


def in_order(
    rounds: Iterable[Round], evaluations: Iterable[Evaluation]
) -> list[Round | Evaluation]:
    """The lines of metrics.jsonl; evaluations at position r come before round r."""
    lines: list[tuple[int, int, Round | Evaluation]] = [(r.round, 1, r) for r in rounds]
    lines += [(e.position, 0, e) for e in evaluations]
    return [line for _, _, line in sorted(lines, key=lambda line: line[:2])]


def lowest(evaluations: Iterable[Evaluation]) -> int | None:
    """The position of the (first) lowest loss on the tuning split; None without evaluations."""
    tuned = [e for e in evaluations if e.split == "dev"]
    return min(tuned, key=lambda e: (e.metrics["loss"], e.position)).position if tuned else None


def kept_position(ledger: Ledger) -> int:
    """The position of a run's final model: the end, or the best position with `keep` = best."""
    best = lowest(ledger.evaluations()) if ledger.settings.get("keep") == "best" else None
    return ledger.position if best is None else best


def rounds_of(ledger: Ledger, start: int = 0) -> list[Round]:
    """The rounds of a ledger from `start` on."""
    scheme_at, backward_at = _setting(ledger, "scheme"), _setting(ledger, "backward_clients")
    made = ledger.facts["method"]
    made_of_scores = made.get("auto", False) or made.get("labels", 0) > 0
    scores = made_of_scores or _needs_scores(ledger, made["name"])
    rounds: list[Round] = []
    for row, record in zip(ledger.rounds(start), ledger.records(start), strict=True):
        scheme, backward = scheme_at(row.round) or "forward", backward_at(row.round) or 0
        directions = int(record.direction.max()) + 1
        a_step = passes(
            directions, scheme, with_curvature=record.curvature is not None, scores=scores
        )
        by_client = [BACKWARD_PASSES if client < backward else a_step for client in row.clients]
        rounds.append(
            Round(
                round=row.round,
                loss=row.loss,
                clients=row.clients,
                bytes_up=row.bytes_up,
                bytes_down=row.bytes_down,
                passes=record.steps * sum(by_client),
                seconds=row.seconds.get("round"),
                forward_seconds=row.seconds.get("forward"),
            )
        )
    return rounds


def _setting(ledger: Ledger, key: str) -> Callable[[int], Any]:
    """The value of a setting by round; None if it is not known."""
    changes = [change for change in ledger.changes() if change.key == key]
    now = ledger.settings.get(key)

    def value(round: int) -> Any:
        later = [change.old for change in changes if change.position > round]
        return later[0] if later else now

    return value


def _needs_scores(ledger: Ledger, method: str) -> bool:
    """Whether a method measures label scores; False for a user's method that is not available."""
    if method in METHODS:
        return METHODS[method].needs == "scores"
    with suppress(ProtocolError):
        return ledger.identity.method.needs == "scores"
    return False


def _plain(told: Round | Summary) -> dict[str, Any]:
    return {f.name: getattr(told, f.name) for f in fields(told)}


def _decoded(validate: Callable[[Any], Told], content: Any) -> Told:
    try:
        return validate(content)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, problem['loc']))!r}: {problem['msg']}"
            for problem in error.errors()
        ]
        raise ProtocolError("; ".join(problems)) from error
