"""Describes a run from its ledger, without loading model or data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from hiso.core.record import scalars_of
from hiso.ring.accept.quarantine import Kind, Quarantine
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.results import encode_line, rounds_of


def inspect_run(path: Path, last: int) -> dict[str, Any]:
    """Settings, counts, fingerprints, evaluations, and the `last` rounds with their scalars.

    Under `clients` are those with whom something was wrong; see `troubled`. Of the refusals, the
    `last` are listed, too.

    Raises:
        ProtocolError: There is no run, or its log is damaged.
    """
    folder = RunFolder(path)
    with Ledger.read(folder.ledger) as ledger:
        ledger.verify()
        up, down = ledger.traffic()
        end = ledger.position
        start = max(0, end - last)
        scalars, size = 0, 0
        for data in ledger.each_bytes():
            scalars, size = scalars + scalars_of(data), size + len(data)
        digest, at = _digest(folder, ledger)
        refusals = ledger.refusals()
        facts = {
            "run": ledger.run,
            "rounds": end,
            "rounds_in_all": ledger.settings.get("rounds"),
            "scalars": scalars,
            "log_bytes": size,
            "bytes_up": up,
            "bytes_down": down,
            "chain": ledger.chain_at(end).hex(),
            "digest": digest,
            "digest_position": at,
            "refused_replies": len(refusals),
            "cut_replies": len({(cut.round, cut.client) for cut in ledger.cuts()}),
        }
        return {
            "facts": facts,
            "clients": troubled(ledger),
            "owners": [{"client": c, **asdict(owner)} for c, owner in ledger.owners().items()],
            "data_changes": [
                {"client": client, "position": at} for client, at in ledger.data_changes()
            ],
            "refusals": [
                {"client": client, "round": round, "reason": reason}
                for client, round, reason in refusals[len(refusals) - min(last, len(refusals)) :]
            ],
            "hyper": ledger.hyper_at(),
            "identity": ledger.facts,
            "settings": ledger.settings,
            "changes": [asdict(change) for change in ledger.changes()],
            "evaluations": [encode_line(e) for e in ledger.evaluations()],
            "rounds": [
                {**encode_line(done), "coefficients": record.coefficient.tolist()}
                for done, record in zip(
                    rounds_of(ledger, start), ledger.records(start), strict=True
                )
            ],
        }


def troubled(ledger: Ledger) -> list[dict[str, int | None]]:
    """A line for each client with whom something was wrong.

    It counts the rounds in which its replies were invalid, it was silent, or its digest was
    wrong, and what in its replies was cut. `not_asked_since` and `asked_again` are the rounds
    between which it is in quarantine, None if it is not.
    """
    faults, cuts, end = ledger.faults(), ledger.cuts(), ledger.position
    out = {c: pause for c, pause in Quarantine(faults).pauses.items() if pause.until > end}
    counts = Counter((fault.client, fault.kind) for fault in faults)
    cut = Counter(one.client for one in cuts)
    return [
        {
            "client": client,
            **{kind: counts[client, kind] for kind in get_args(Kind)},
            "cut": cut[client],
            "not_asked_since": out[client].since if client in out else None,
            "asked_again": out[client].until if client in out else None,
        }
        for client in sorted({fault.client for fault in faults} | set(cut))
    ]


def _digest(folder: RunFolder, ledger: Ledger) -> tuple[str | None, int | None]:
    """The newest known digest and its position, from the summary or from the last quorum."""
    end = ledger.position
    told = folder.read_digest(ledger.chain_at(end))
    known = ledger.last_digest() if told is None else (end, told)
    return (None, None) if known is None else (f"{known[1]:016x}", known[0])
