"""Envelopes: they survive a socket, and noise is refused."""

from __future__ import annotations

import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import ProtocolError
from hiso.flower.envelope import MAX_BYTES, Envelope, receive, send

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


def test_a_large_envelope_goes_through_a_socket():
    near, far = socket.socketpair()
    sent = Envelope("round", {"a": [1]}, bytes(3_000_000))
    with near, far:
        thread = threading.Thread(target=send, args=(near, sent))
        thread.start()
        assert receive(far) == sent
        thread.join()


@pytest.mark.parametrize("data", [b"", b"\5", struct.pack("<Q", 10) + b"short"])
def test_a_connection_that_breaks_is_an_error(data):
    near, far = socket.socketpair()
    with far:
        with near:
            near.sendall(data)
        with pytest.raises(ProtocolError, match="in the middle of an envelope"):
            receive(far)


def test_too_much_is_not_read():
    near, far = socket.socketpair()
    with near, far:
        near.sendall(struct.pack("<Q", MAX_BYTES + 1))
        with pytest.raises(ProtocolError, match="are allowed"):
            receive(far)
