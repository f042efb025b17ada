"""What can be seen of a run while it goes on, read from its folder without writing anything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from hiso.core.plain import plain
from hiso.errors import ProtocolError
from hiso.ring.accept.quarantine import Kind, Quarantine
from hiso.ring.ledger.ledger import Ledger, RoundRow
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.folder import RunFolder
from hiso.run.formatting import client_numbers
from hiso.run.server_status import Doing, ReplyTime, ServerStatus, read_server_status

RECENT = 60
"""Number of the last rounds whose losses are told."""
STALE = 30.0
"""Age in seconds at which the server's status no longer describes the present."""
_GAPS = 20
"""Number of the last rounds from which the time of a round is taken."""
_FAULTS: dict[Kind, str] = {
    "invalid": "an invalid reply",
    "silent": "no reply, when others replied",
    "digest": "another digest than the quorum",
}


@dataclass(frozen=True)
class WatchedClient:
    """A client of the run. None means: not known, or there was none.

    Attributes:
        client: Its number.
        site: The name under which the key that owns the number is registered.
        here: Whether it is connected.
        last_round: The last committed round to which it sent a valid reply.
        reply: How it answered last.
        paused_until: While it is in quarantine, the first round for which it is asked again.
        faults: How often it was at fault, by kind of fault.
        trouble: Its last fault, or the reason of its last refusal.
        trouble_round: The round of that.
        withdrawn: Whether it has left for good.
    """

    client: int
    site: str | None
    here: bool | None
    last_round: int | None
    reply: ReplyTime | None
    paused_until: int | None
    faults: dict[Kind, int]
    trouble: str | None
    trouble_round: int | None
    withdrawn: bool = False


@dataclass(frozen=True)
class Watched:
    """A run at a moment. None means: not known, or there is none.

    Attributes:
        folder: The run's folder.
        run: The run's id; None until it has a ledger.
        doing: What the server application does; None without a fresh status, as in a simulation.
        finished: Whether the run's summary is written, and describes the end of the log.
        rounds: Committed rounds.
        planned: Rounds after which the run ends.
        aborted: Aborted attempts at the open round.
        asked: Clients that were asked in the open round.
        last_round_time: When the last round was committed, Unix time.
        seconds_per_round: Median time between the commits of the last rounds.
        seconds_left: Until all planned rounds are done, at this rate.
        loss: Of the last round that has one.
        losses: Of the last `RECENT` rounds, as far as they have one.
        evaluation: The last one; on the tuning or test split if there is one.
        bytes_up: Bytes of scalars sent up, aborted attempts included.
        bytes_down: The same for bytes sent down.
        message_bytes_up: Bytes of whole messages; 0 for a run in one process.
        message_bytes_down: The same for messages sent down.
        refusals: Number of refused replies.
        clients: All clients, by number.
    """

    folder: str
    run: str | None
    doing: Doing | None
    finished: bool
    rounds: int
    planned: int | None
    aborted: int
    asked: list[int]
    last_round_time: float | None
    seconds_per_round: float | None
    seconds_left: float | None
    loss: float | None
    losses: list[float]
    evaluation: Evaluation | None
    bytes_up: int
    bytes_down: int
    message_bytes_up: int
    message_bytes_down: int
    refusals: int
    clients: list[WatchedClient]


def watch_run(path: Path) -> Watched:
    """Everything that is told about a run; also of one whose folder is still being filled.

    Raises:
        ProtocolError: There is no such folder, or the ledger is damaged.
        StorageError: A file cannot be read.
    """
    if not path.is_dir():
        raise ProtocolError(f"there is no folder {path}: name the folder of a run")
    folder, status = RunFolder(path), read_server_status(path)
    if status is not None and (time.time() - status.time > STALE or status.doing == "nothing more"):
        status = None
    if not folder.has_run():
        return _before_the_ledger(path, status)
    with Ledger.read(folder.ledger) as ledger:
        return _watched(folder, ledger, status)


def _before_the_ledger(path: Path, status: ServerStatus | None) -> Watched:
    here = [] if status is None else status.here
    return Watched(
        folder=str(path),
        run=None,
        doing=None if status is None else status.doing,
        finished=False,
        rounds=0,
        planned=None,
        aborted=0,
        asked=[],
        last_round_time=None,
        seconds_per_round=None,
        seconds_left=None,
        loss=None,
        losses=[],
        evaluation=None,
        bytes_up=0,
        bytes_down=0,
        message_bytes_up=0,
        message_bytes_down=0,
        refusals=0,
        clients=[WatchedClient(c, None, True, None, None, None, {}, None, None) for c in here],
    )


def _watched(folder: RunFolder, ledger: Ledger, status: ServerStatus | None) -> Watched:
    end, settings = ledger.position, ledger.settings
    planned = settings.get("rounds")
    rows = ledger.rounds(max(0, end - RECENT))
    losses = [row.loss for row in rows if row.loss is not None]
    seconds, left = _seconds_per_round(rows), None
    if planned is not None and seconds is not None:
        left = (planned - end) * seconds
    summary = folder.read_summary()
    finished = summary is not None and summary.chain == ledger.chain_at(end).hex()
    up, down = ledger.traffic()
    message_up, message_down = ledger.message_bytes()
    refusals = ledger.refusals()
    return Watched(
        folder=str(folder.path),
        run=ledger.run,
        doing=None if status is None else status.doing,
        finished=finished,
        rounds=end,
        planned=planned,
        aborted=ledger.attempt(end),
        asked=[] if status is None else status.asked,
        last_round_time=rows[-1].time if rows else None,
        seconds_per_round=seconds,
        seconds_left=left,
        loss=losses[-1] if losses else None,
        losses=losses,
        evaluation=_last(ledger.evaluations()),
        bytes_up=up,
        bytes_down=down,
        message_bytes_up=message_up,
        message_bytes_down=message_down,
        refusals=len(refusals),
        clients=_clients(ledger, refusals, settings, status),
    )


def _seconds_per_round(rows: Sequence[RoundRow]) -> float | None:
    """The median: an evaluation or a pause in between does not count."""
    gaps = [after.time - before.time for before, after in pairwise(rows[-_GAPS - 1 :])]
    return max(0.0, median(gaps)) if gaps else None


def _last(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    common = [e for e in evaluations if e.split in ("dev", "test")] or evaluations
    if not common:
        return None
    last = common[-1]
    metrics = {plain(name): value for name, value in last.metrics.items()}
    return Evaluation(last.position, plain(last.split), metrics)


def _clients(
    ledger: Ledger,
    refusals: Sequence[tuple[int | None, int | None, str]],
    settings: Mapping[str, Any],
    status: ServerStatus | None,
) -> list[WatchedClient]:
    faults, owners, last = ledger.faults(), ledger.owners(), ledger.last_replies()
    pauses, end = Quarantine(faults).pauses, ledger.position
    kinds: dict[int, dict[Kind, int]] = {}
    troubles: dict[int, tuple[int | None, str]] = {}
    for fault in faults:
        counts = kinds.setdefault(fault.client, {})
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
        troubles[fault.client] = fault.round, _FAULTS[fault.kind]
    for client, round, reason in refusals:
        if client is not None:  # of the same round, it says more than the fault
            before, _ = troubles.get(client, (None, ""))
            if round is None or before is None or round >= before:
                troubles[client] = round, plain(reason)
    for client, position in ledger.data_changes():
        if position >= (troubles.get(client, (0, ""))[0] or 0):
            troubles[client] = position, "its data have changed"
    gone = client_numbers(left) if (left := settings.get("withdrawn")) else []
    known = {*range(settings.get("clients", 0)), *last, *troubles, *(status.here if status else ())}
    return [
        WatchedClient(
            client=client,
            site=plain(owners[client].site) if client in owners else None,
            here=None if status is None else client in status.here,
            last_round=last.get(client),
            reply=None if status is None else status.replies.get(client),
            paused_until=(
                pauses[client].until if client in pauses and pauses[client].until > end else None
            ),
            faults=kinds.get(client, {}),
            trouble=troubles[client][1] if client in troubles else None,
            trouble_round=troubles[client][0] if client in troubles else None,
            withdrawn=client in gone,
        )
        for client in sorted(known)
    ]
