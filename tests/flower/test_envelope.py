"""Envelopes: they survive as a message of Flower, and noise is refused."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import ProtocolError
from hiso.flower.envelope import MAX_BYTES, Envelope, pack, unpack

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
envelopes = st.builds(
    Envelope, st.text(), st.dictionaries(st.text(), json_values), st.binary(max_size=200)
)


@given(envelopes)
def test_an_envelope_survives(envelope):
    assert Envelope.from_bytes(envelope.to_bytes()) == envelope


@given(st.binary(max_size=100))
def test_noise_is_refused(noise):
    for data in (noise, b"HENV\1\0" + noise):
        with pytest.raises(ProtocolError):
            Envelope.from_bytes(data)


@given(envelopes)
def test_an_envelope_survives_as_a_message(envelope):
    content = RecordDict.inflate(pack(envelope).deflate(), pack(envelope).children)
    assert unpack(content) == envelope


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (RecordDict(), "without an envelope"),
        (RecordDict({"other": ConfigRecord({"envelope": b""})}), "without an envelope"),
        (RecordDict({"hiso": MetricRecord({"envelope": 1})}), "in a ConfigRecord"),
        (RecordDict({"hiso": ConfigRecord({"envelope": "text"})}), "is bytes"),
        (RecordDict({"hiso": ConfigRecord({"envelope": b"noise"})}), "malformed"),
        (RecordDict({"hiso": ConfigRecord({"envelope": bytes(MAX_BYTES + 1)})}), "are allowed"),
    ],
)
def test_a_message_of_another_app_is_refused(content, said):
    with pytest.raises(ProtocolError, match=said):
        unpack(content)
