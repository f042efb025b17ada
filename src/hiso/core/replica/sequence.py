"""Checks whether records can be folded at a replica's position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hiso.core.method.base import Method
from hiso.core.record import Record
from hiso.errors import ProtocolError, SettingsError


def check_sequence(
    records: Sequence[Record], position: int, method: Method, hyper: Mapping[str, float]
) -> None:
    """Checks that `method`, with hyper-parameters `hyper`, can fold `records` from `position` on.

    Raises:
        ProtocolError: A record is not the next one, has terms for another kind of method, changes
            a hyper-parameter that the method does not have, or sets a value that it refuses.
    """
    now = dict(hyper)
    for number, record in enumerate(records, position):
        unknown = set(record.changes) - set(method.hyper)
        if record.round != number:
            raise ProtocolError(
                f"the record of round {record.round} cannot be folded at position {number}: "
                "records follow each other without gaps"
            )
        problems = [f"it changes {', '.join(sorted(unknown))}"] if unknown else []
        if (record.curvature is not None) != method.measures_curvature:
            problems.append(f"it has {'no ' if method.measures_curvature else ''}curvature scalars")
        if set(record.facts) != set(method.facts):
            problems.append(f"it has the facts {sorted(record.facts)}, not {sorted(method.facts)}")
        if problems:
            raise ProtocolError(
                f"the record of round {number} was made by another method than {method.name}: "
                + "; ".join(problems)
            )
        if record.changes:
            now |= record.changes
            try:
                replace(method, **now)
            except SettingsError as error:
                raise ProtocolError(
                    f"the record of round {number} cannot be folded: {error}"
                ) from error
