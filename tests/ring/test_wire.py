"""Plan and reply as bytes: they survive a round trip, and everything else is refused."""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.core.record import Record
from hiso.errors import ProtocolError
from hiso.ring.messages import Plan, Reply
from hiso.ring.wire import (
    hash_question,
    plan_from_bytes,
    plan_to_bytes,
    reply_from_bytes,
    reply_to_bytes,
)

GOLDEN = [
    "0c38d6949290a1f0452a59aefb82fcdf94e319549237bda14f5daad11fa6c9e5",
    "128cdf0913005d39efbd6ada32a0adc1caae27cf9bc6bdd1c588016320937283",
    "160ac4b9a6e98a58c081df2095e13068f7e94f96d65a05b75eefbf2f268bb297",
    "74f53e7b2bac2fd64ab2c1ceac89ffbed541867692f6dea8544d84f275f90211",
]
FLOAT32 = float(np.finfo(np.float32).max)

hashes = st.binary(min_size=32, max_size=32)
clients = st.integers(0, 2**32 - 2)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    number, client = draw(st.integers(3, 2**32 - 1)), draw(clients)
    records = [
        Record(
            number - back,
            np.zeros(2, np.uint16),
            np.zeros(2, np.uint32),
            np.arange(2, dtype=np.uint16),
            np.array([back, 0.5], np.float32),
            changes={"lr": 0.25} if back == 2 else {},
        )
        for back in range(draw(st.integers(0, 3)), 0, -1)
    ]
    names = st.sampled_from(["lr", "nu", "µ"])
    return Plan(
        run=draw(hashes).hex(),
        round=number,
        client=client,
        records=tuple(records),
        chain=draw(hashes),
        steps=draw(st.integers(1, 2**16)),
        directions=draw(st.integers(1, 2**16)),
        mu=draw(st.floats(1e-30, 1e30)),
        scheme=draw(st.sampled_from(["forward", "central"])),
        stream=draw(st.sampled_from([0, client + 1])),
        changes=draw(st.dictionaries(names, st.floats(-FLOAT32, FLOAT32))),
    )


@st.composite
def replies(draw: st.DrawFn) -> Reply:
    shape = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    size = shape[0] * shape[1]

    def numbers() -> np.ndarray:
        values = draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
        return np.array(values, np.float32).reshape(shape)

    return Reply(
        run=draw(hashes).hex(),
        round=draw(st.integers(0, 2**32 - 1)),
        client=draw(clients),
        asked=draw(hashes),
        digest=draw(st.integers(0, 2**64 - 1)),
        scalars=numbers(),
        curvature=numbers() if draw(st.booleans()) else None,
        loss=draw(st.none() | st.floats()),
        examples=draw(st.integers(0, 2**64 - 1)),
        facts=draw(st.dictionaries(st.sampled_from(["t", "µ"]), st.floats(-8.0, 8.0, width=32))),
    )


@given(plans())
def test_a_plan_survives(plan):
    data = plan_to_bytes(plan)
    again = plan_from_bytes(data)
    assert plan_to_bytes(again) == data
    assert replace(again, records=()) == replace(plan, records=())
    assert [r.to_bytes() for r in again.records] == [r.to_bytes() for r in plan.records]


@given(replies())
def test_a_reply_survives(reply):
    data = reply_to_bytes(reply)
    again = reply_from_bytes(data)
    assert reply_to_bytes(again) == data
    assert (again.run, again.client, again.digest) == (reply.run, reply.client, reply.digest)
    assert np.array_equal(again.scalars, reply.scalars, equal_nan=True)
    assert again.scalars.shape == reply.scalars.shape
    assert (again.curvature is None) == (reply.curvature is None)


@given(plans(), st.data())
def test_a_damaged_plan_is_refused_or_canonical(plan, data):
    raw = bytearray(plan_to_bytes(plan))
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (bytes(raw[:cut]), bytes(raw) + b"\0"):
        with pytest.raises(ProtocolError):
            plan_from_bytes(wrong)
    raw[cut] ^= data.draw(st.integers(1, 255))
    try:
        damaged = plan_from_bytes(bytes(raw))
    except ProtocolError:
        return
    assert plan_to_bytes(damaged) == raw


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e39])
@given(plans())
def test_a_change_that_is_no_finite_float32_is_refused(value, plan):
    with pytest.raises(ProtocolError):
        replace(plan, changes={"lr": value})
    raw = plan_to_bytes(replace(plan, records=(), changes={"lr": 0.5}))
    at = raw.rindex(struct.pack("<d", 0.5))
    with pytest.raises(ProtocolError):
        plan_from_bytes(raw[:at] + struct.pack("<d", value) + raw[at + 8 :])


@given(plans())
def test_a_question_is_all_of_a_plan_but_its_records(plan):
    asked = hash_question(plan)
    assert len(asked) == 32
    assert hash_question(replace(plan, records=())) == asked
    others = {
        "run": "ab" * 32,
        "round": plan.round - 1,
        "chain": b"other" + bytes(27),
        "steps": plan.steps % 2**16 + 1,
        "directions": plan.directions % 2**16 + 1,
        "mu": plan.mu * 1.5,
        "scheme": "central" if plan.scheme == "forward" else "forward",
        "stream": 0 if plan.stream else plan.client + 1,
        "changes": {**plan.changes, "beta": 0.25},
    }
    assert {"client", "records", *others} == {field.name for field in fields(Plan)}
    for name, value in others.items():
        other = replace(plan, records=(), **{name: value})
        assert hash_question(other) != asked, name


@given(replies(), st.data())
def test_a_reply_of_another_size_is_refused(reply, data):
    raw = reply_to_bytes(reply)
    cut = data.draw(st.integers(0, len(raw) - 1))
    for wrong in (raw[:cut], raw + b"\0"):
        with pytest.raises(ProtocolError):
            reply_from_bytes(wrong)


@given(st.binary(max_size=300))
def test_noise_is_refused(noise):
    for read in (plan_from_bytes, reply_from_bytes):
        with pytest.raises(ProtocolError):
            read(noise)


def test_another_format_says_what_to_do():
    raw = bytearray(b"HRPL" + b"\x01\0" + bytes(200))
    with pytest.raises(ProtocolError, match="install the same version of hiso everywhere"):
        reply_from_bytes(bytes(raw))


def test_the_bytes_are_pinned():
    """Another digest is another format: give it a new `FORMAT`, knowingly."""
    record = Record(
        6,
        np.zeros(2, np.uint16),
        np.zeros(2, np.uint32),
        np.arange(2, dtype=np.uint16),
        np.array([0.5, -2.0], np.float32),
    )
    plan = Plan(
        run="ab" * 32, round=7, client=3, records=(record,), chain=bytes(range(32)), steps=2,
        directions=5, mu=1e-3, scheme="central", stream=4,
        changes={"lr": 0.25, "eps": 1e-8, "µ": 1.0},
    )  # fmt: skip
    g = np.array([[1.0, -2.0]], np.float32)
    reply = Reply("ab" * 32, 7, 3, hash_question(plan), 2**63 + 1, g, g + 1, 0.5, 9)
    assert hash_question(plan).hex() == GOLDEN[0]
    assert hashlib.sha256(plan_to_bytes(plan)).hexdigest() == GOLDEN[1]
    assert hashlib.sha256(reply_to_bytes(reply)).hexdigest() == GOLDEN[2]
    told = replace(reply, facts={"t": 0.5, "s": -1.0})
    assert hashlib.sha256(reply_to_bytes(told)).hexdigest() == GOLDEN[3]
    assert plan_from_bytes(plan_to_bytes(plan)).changes == plan.changes
    for flag in (2, 4, 0x8000):
        raw = bytearray(reply_to_bytes(reply))
        raw[6:8] = (int.from_bytes(raw[6:8], "little") | flag).to_bytes(2, "little")
        with pytest.raises(ProtocolError):
            reply_from_bytes(bytes(raw))
