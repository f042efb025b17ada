"""Records as a few arrays, which are the content of an adapter's file.

The coordinates of a record's terms (step, stream and direction of each term) are its pattern. Most
records of a run have the same pattern, so each pattern is stored once. For R records with N terms
in total, K patterns with T terms in total, and C changes:

    coefficient f32[N] · curvature f32[N], if the method has it
    pattern u32[R]                               the pattern of each record
    pattern.terms u32[K] · pattern.step u16[T] · pattern.stream u32[T] · pattern.direction u16[T]
    change.round u32[C] · change.name u32[C] · change.value f32[C]
    fact.round, fact.name, fact.value            as for changes

`change.name` and `fact.name` are indices into lists of names, which are stored with the arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.core.record import Record
from hiso.errors import ProtocolError

Arrays = dict[str, NDArray[Any]]
Names = dict[str, list[str]]

_COORDINATES = {"step": np.uint16, "stream": np.uint32, "direction": np.uint16}


def pack_records(records: Sequence[Record]) -> tuple[Arrays, Names]:
    """The arrays and the lists of names of records 0, 1, … of a log.

    Raises:
        ProtocolError: Some of the records have curvature and others do not.
    """
    patterns: dict[tuple[bytes, ...], Record] = {}
    keys = [tuple(getattr(record, name).tobytes() for name in _COORDINATES) for record in records]
    for key, record in zip(keys, records, strict=True):
        patterns.setdefault(key, record)
    number = {key: index for index, key in enumerate(patterns)}
    kinds = list(patterns.values())
    arrays: Arrays = {
        "coefficient": _joined([record.coefficient for record in records], np.float32),
        "pattern": np.array([number[key] for key in keys], np.uint32),
        "pattern.terms": np.array([record.terms for record in kinds], np.uint32),
    }
    for name, dtype in _COORDINATES.items():
        arrays[f"pattern.{name}"] = _joined([getattr(record, name) for record in kinds], dtype)
    curvature = [record.curvature for record in records if record.curvature is not None]
    if len(curvature) not in (0, len(records)):
        raise ProtocolError(
            "some records have curvature and others do not: no run has such records"
        )
    if curvature:
        arrays["curvature"] = _joined(curvature, np.float32)
    names: Names = {}
    for what, each in (
        ("change", [record.changes for record in records]),
        ("fact", [record.facts for record in records]),
    ):
        names[what] = sorted({name for values in each for name in values})
        arrays |= _pack_named(what, each, names[what])
    return arrays, names


def unpack_records(arrays: Mapping[str, NDArray[Any]], names: Mapping[str, Any]) -> list[Record]:
    """The records from the arrays of `pack_records`.

    Raises:
        ProtocolError: The arrays are invalid; the message says why.
    """
    try:
        return list(_records(arrays, names))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"its arrays are not valid records: {error!r}") from error


def _records(arrays: Mapping[str, NDArray[Any]], names: Mapping[str, Any]) -> Iterator[Record]:
    terms, pattern = arrays["pattern.terms"].tolist(), arrays["pattern"].tolist()
    ends = [0, *accumulate(terms[index] for index in pattern)]
    columns = {key: arrays[key] for key in ("coefficient", "curvature") if key in arrays}
    kinds = {name: arrays[f"pattern.{name}"] for name in _COORDINATES}
    sizes = [(column, ends[-1]) for column in columns.values()]
    sizes += [(column, sum(terms)) for column in kinds.values()]
    if odd := [(column.shape, total) for column, total in sizes if column.shape != (total,)]:
        raise ValueError(f"an array has the shape {odd[0][0]}, not ({odd[0][1]},)")
    starts = [0, *accumulate(terms)]
    changes, facts = (
        _unpack_named(what, arrays, names, len(pattern)) for what in ("change", "fact")
    )
    for number, (index, (start, stop)) in enumerate(zip(pattern, pairwise(ends), strict=True)):
        here = slice(starts[index], starts[index + 1])
        yield Record(
            number,
            **{name: column[here] for name, column in kinds.items()},
            **{name: column[start:stop] for name, column in columns.items()},
            changes=changes[number],
            facts=facts[number],
        )


def _joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *parts])


def _pack_named(what: str, each: Sequence[Mapping[str, float]], names: list[str]) -> Arrays:
    rows = [
        (number, names.index(name), value)
        for number, values in enumerate(each)
        for name, value in sorted(values.items())
    ]
    rounds, indices, values = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        f"{what}.round": np.array(rounds, np.uint32),
        f"{what}.name": np.array(indices, np.uint32),
        f"{what}.value": np.array(values, np.float32),
    }


def _unpack_named(
    what: str, arrays: Mapping[str, NDArray[Any]], names: Mapping[str, Any], count: int
) -> list[dict[str, float]]:
    found: list[dict[str, float]] = [{} for _ in range(count)]
    columns = (arrays[f"{what}.{part}"].tolist() for part in ("round", "name", "value"))
    for number, index, value in zip(*columns, strict=True):
        found[number][names[what][index]] = value
    return found
