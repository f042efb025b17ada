"""Describes a run from its ledger, without loading model or data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.results import encode_line, rounds_of


def inspect_run(path: Path, last: int) -> dict[str, Any]:
    """Settings, counts, fingerprints, evaluations, and the `last` rounds with their scalars.

    Raises:
        ProtocolError: There is no run, or its log is damaged.
    """
    folder = RunFolder(path)
    with Ledger.read(folder.ledger) as ledger:
        ledger.verify()
        up, down = ledger.traffic()
        records = ledger.records()
        end = ledger.position
        start = max(0, end - last)
        digest, at = _digest(folder, ledger)
        facts = {
            "run": ledger.run,
            "rounds": end,
            "rounds_in_all": ledger.settings.get("rounds"),
            "scalars": sum(record.scalars for record in records),
            "log_bytes": sum(len(record.to_bytes()) for record in records),
            "bytes_up": up,
            "bytes_down": down,
            "chain": ledger.chain_at(end).hex(),
            "digest": digest,
            "digest_position": at,
            "refused_replies": len(ledger.refusals()),
        }
        return {
            "facts": facts,
            "hyper": ledger.hyper_at(),
            "identity": ledger.facts,
            "settings": ledger.settings,
            "changes": [asdict(change) for change in ledger.changes()],
            "evaluations": [encode_line(e) for e in ledger.evaluations()],
            "rounds": [
                {**encode_line(done), "coefficients": record.coefficient.tolist()}
                for done, record in zip(rounds_of(ledger, start), records[start:], strict=True)
            ],
        }


def _digest(folder: RunFolder, ledger: Ledger) -> tuple[str | None, int | None]:
    """The newest known digest and its position, from the summary or from the last quorum."""
    end = ledger.position
    told = folder.read_digest(ledger.chain_at(end))
    known = ledger.last_digest() if told is None else (end, told)
    return (None, None) if known is None else (f"{known[1]:016x}", known[0])
