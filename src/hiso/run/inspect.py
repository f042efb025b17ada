"""A run as its ledger tells it, without loading model or data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hiso.federation.ledger import Ledger
from hiso.run.folder import RunFolder, evaluation_line, round_line


def inspect_run(path: Path, last: int) -> dict[str, Any]:
    """Settings, counts, fingerprints, evaluations, and the `last` rounds with their scalars.

    Raises:
        ProtocolError: There is no run, or its log is damaged.
    """
    with Ledger.open(RunFolder(path).ledger) as ledger:
        ledger.verify()
        up, down = ledger.traffic()
        records = ledger.records()
        end = ledger.position
        start = max(0, end - last)
        rows = ledger.rounds(start)
        facts = {
            "run": ledger.run,
            "rounds": end,
            "of": ledger.settings.get("rounds"),
            "scalars in the log": sum(record.scalars for record in records),
            "bytes of the log": sum(len(record.to_bytes()) for record in records),
            "bytes_up": up,
            "bytes_down": down,
            "chain": ledger.chain_at(end).hex(),
            "digest": f"{ledger.digest_at(end - 1):016x} before round {end - 1}" if end else None,
            "refused replies": len(ledger.refusals()),
        }
        return {
            "facts": facts,
            "identity": ledger.identity,
            "settings": ledger.settings,
            "changes": [asdict(change) for change in ledger.changes()],
            "evaluations": [evaluation_line(e) for e in ledger.evaluations()],
            "rounds": [
                {**round_line(row), "coefficients": record.coefficient.tolist()}
                for row, record in zip(rows, records[start:], strict=True)
            ],
        }
