"""Records: canonical bytes that survive a round trip, and refuse everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.core.record import (
    CHANGES_AT,
    Record,
    chain_of,
    chain_root,
    round_of,
    scalars_of,
)
from hiso.errors import ProtocolError

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def records(draw: st.DrawFn) -> Record:
    gaps = draw(st.lists(st.integers(0, 1), max_size=12))
    step = np.cumsum([0, *gaps]).astype(np.uint16)
    count = step.size

    def column(values: st.SearchStrategy, dtype: str) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=count, max_size=count)), dtype)

    return Record(
        draw(st.integers(0, 2**32 - 1)),
        step,
        column(st.integers(0, 2**32 - 1), "u4"),
        column(st.integers(0, 2**16 - 1), "u2"),
        column(floats, "f4"),
        column(floats, "f4") if draw(st.booleans()) else None,
        draw(st.dictionaries(st.sampled_from(["lr", "nu", "floor", "µ"]), floats)),
        draw(st.dictionaries(st.sampled_from(["t", "µ"]), floats)),
    )


@given(records())
def test_bytes_round_trip(record):
    data = record.to_bytes()
    again = Record.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.round, again.terms, again.steps) == (record.round, record.terms, record.steps)
    assert np.array_equal(again.coefficient, record.coefficient)
    assert dict(again.changes) == {k: np.float32(v) for k, v in record.changes.items()}
    assert dict(again.facts) == {k: np.float32(v) for k, v in record.facts.items()}


@given(records())
def test_what_is_read_from_the_bytes_alone(record):
    data = record.to_bytes()
    assert (round_of(data), scalars_of(data)) == (record.round, record.scalars)
    assert chain_of(bytes(32), data) == record.chain(bytes(32))
    changed = int.from_bytes(data[CHANGES_AT : CHANGES_AT + 2], "little")
    assert changed == len(record.changes)


@given(st.binary(max_size=40))
def test_noise_is_no_record(noise):
    for read in (round_of, Record.from_bytes):
        with pytest.raises(ProtocolError):
            read(noise)


@given(records(), st.data())
def test_damaged_bytes_are_refused_or_differ(record, data):
    raw = bytearray(record.to_bytes())
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises(ProtocolError):
        Record.from_bytes(bytes(raw[:cut]))
    with pytest.raises(ProtocolError):
        Record.from_bytes(bytes(raw) + b"\0")
    raw[cut] ^= data.draw(st.integers(1, 255))
    try:
        damaged = Record.from_bytes(bytes(raw))
    except ProtocolError:
        return
    assert damaged.chain(b"") != record.chain(b"")


def test_chain_depends_on_run_and_order():
    def one(round: int, c: float) -> Record:
        zero = np.zeros(1)
        return Record(
            round, zero.astype("u2"), zero.astype("u4"), zero.astype("u2"), np.array([c], "f4")
        )

    root, other = chain_root(b"a"), chain_root(b"b")
    assert root != other
    assert one(1, 2.0).chain(one(0, 1.0).chain(root)) != one(1, 1.0).chain(one(0, 2.0).chain(root))
    assert one(0, 1.0).chain(root) != one(0, 1.0).chain(other)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"coefficient": np.array([np.nan, 1], "f4")}, "coefficient is not finite"),
        ({"coefficient": np.array([1], "f4")}, "step is uint16"),
        ({"coefficient": np.array([1, 2], "f8")}, "coefficient is float64"),
        ({"step": np.array([1, 2], "u2")}, "ascend from 0"),
        ({"step": np.array([0, 2], "u2")}, "ascend from 0"),
        ({"round": -1}, "the round must lie"),
        ({"changes": {"lr": float("inf")}}, "change 'lr'"),
        ({"curvature": np.array([np.inf, 0], "f4")}, "curvature is not finite"),
    ],
)
def test_impossible_records_are_refused(fields, problem):
    good = {
        "round": 0,
        "step": np.array([0, 0], "u2"),
        "stream": np.array([0, 0], "u4"),
        "direction": np.array([0, 1], "u2"),
        "coefficient": np.array([1, 2], "f4"),
    }
    Record(**good)
    with pytest.raises(ProtocolError, match=problem):
        Record(**{**good, **fields})


def test_scalars_count_what_travels():
    record = Record(
        0,
        np.array([0, 0], "u2"),
        np.array([0, 0], "u4"),
        np.array([0, 1], "u2"),
        np.array([1, 2], "f4"),
        np.array([3, 4], "f4"),
        {"lr": 0.1},
    )
    assert record.scalars == 5
