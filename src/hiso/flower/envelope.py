"""The message between server application, relay and worker: a kind, some facts, some bytes.

The relay only passes it on, so this module needs only the standard library.

    "HENV" · format u16 · length of the header u32 · header (JSON: {"kind": …, "facts": {…}}) · body

On a socket each envelope is preceded by its length, u64. All numbers are little-endian.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

from hiso.errors import HisoError, ProtocolError

FORMAT = 2
MAX_BYTES = 256 * 2**20
"""Largest accepted envelope; a log of a million rounds with P = 5 takes half of it."""
MISSING = "WorkerMissing"
"""Kind of error: no worker answers at the node."""
BUSY = "WorkerBusy"
"""Kind of error: the worker did not finish in time, or works on a newer request."""
LOST = "MessageLost"
"""Kind of error: Flower reports that no answer will come, or the time for it is over."""
UNKNOWN_RUN = "UnknownRun"
"""Kind of error: the worker needs the run's identity before it can take part."""
BEHIND = "Behind"
"""Kind of error: the worker lacks records before the sent ones; it reports its position."""
_HEAD = struct.Struct("<4sHI")
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Envelope:
    """One message.

    Attributes:
        kind: The kind of message. Requests: "hello", "round", "fold", "status", "stop". Answers:
            "hello", "reply", "folded", "status", "error".
        facts: Any JSON values.
        body: The bytes of a plan, a reply, or records.
    """

    kind: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    body: bytes = b""

    @classmethod
    def of_error(cls, kind: str, reason: str) -> Envelope:
        """An error for the receiver: `kind` is for programs, `reason` for display."""
        return cls("error", {"error": kind, "reason": reason})

    @classmethod
    def of_exception(cls, error: HisoError) -> Envelope:
        """An error message made from one of hiso's exceptions."""
        return cls.of_error(type(error).__name__, str(error))

    def to_bytes(self) -> bytes:
        """The envelope as bytes."""
        header = json.dumps({"kind": self.kind, "facts": self.facts}).encode()
        return _HEAD.pack(b"HENV", FORMAT, len(header)) + header + self.body

    @classmethod
    def from_bytes(cls, data: bytes) -> Envelope:
        """Reads an envelope.

        Raises:
            ProtocolError: The bytes are not an envelope, or an envelope of another format.
        """
        try:
            magic, version, length = _HEAD.unpack_from(data)
            end = _HEAD.size + length
            if magic != b"HENV" or len(data) < end:
                raise ValueError("it is cut short, or something else")
            if version != FORMAT:
                raise ValueError(f"it has format {version}, this hiso speaks {FORMAT}")
            header = json.loads(data[_HEAD.size : end], parse_constant=_refuse)
            kind, facts = header["kind"], header["facts"]
            if not isinstance(kind, str) or not isinstance(facts, dict):
                raise ValueError("its header is something else")
        except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtocolError(f"envelope of {len(data)} bytes is malformed: {error}") from error
        return cls(kind, facts, data[end:])


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def send(connection: socket.socket, envelope: Envelope) -> None:
    """Writes one envelope to a socket."""
    data = envelope.to_bytes()
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive(connection: socket.socket) -> Envelope:
    """Reads one envelope from a socket.

    Raises:
        ProtocolError: The other side closed the connection, or sent invalid or too much data.
        TimeoutError: Nothing arrived within the socket's timeout.
    """
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size))
    if length > MAX_BYTES:
        raise ProtocolError(f"an envelope of {length} bytes is announced, {MAX_BYTES} are allowed")
    return Envelope.from_bytes(_read(connection, length))


def _read(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 2**20))
        if not part:
            raise ProtocolError("the other side closed the connection in the middle of an envelope")
        parts += part
    return bytes(parts)
