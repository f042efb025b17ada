"""`hiso diff`: compares two logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hiso.export.adapter import Adapter, read_log


def diff(a: str | Path, b: str | Path) -> dict[str, Any]:
    """Compares two runs or adapters without loading their models.

    Returns:
        `a` and `b`: run, rounds and digest of each. `identity_equal`, `base_equal`, and
        `differences`: how the identities differ. `position`: the number of records that the logs
        have in common; `first`: the first records that differ, if there are any.

    Raises:
        ProtocolError: One of them is damaged, or of another version.
        LoadError: There is neither a run nor an adapter.
    """
    one, other = read_log(a), read_log(b)
    pairs = zip(one.records, other.records, strict=False)
    same = [mine.to_bytes() == theirs.to_bytes() for mine, theirs in pairs]
    position = same.index(False) if False in same else len(same)
    facts = [json.loads(log.identity.text) for log in (one, other)]
    return {
        "a": _told(a, one),
        "b": _told(b, other),
        "identity_equal": one.identity == other.identity,
        "base_equal": facts[0].get("model") == facts[1].get("model"),
        "differences": one.identity.differences(other.identity),
        "position": position,
        "first": [_first(log, position) for log in (one, other)],
    }


def _told(place: str | Path, log: Adapter) -> dict[str, Any]:
    digest = None if log.after is None else f"{log.after:016x}"
    figures = {"run": log.identity.run, "rounds": log.position, "digest": digest}
    return {"place": str(place), **figures}


def _first(log: Adapter, position: int) -> dict[str, Any] | None:
    """The content of a record; None after the end of the log."""
    if position == log.position:
        return None
    record = log.records[position]
    return {"coefficients": record.coefficient.tolist(), "changes": dict(record.changes)}
