"""The message between server application and worker: a kind, some facts, some bytes.

    "HENV" · format u16 · length of the header u32 · header (JSON: {"kind": …, "facts": {…}}) · body

Numbers are little-endian. In a Flower message the envelope is one value of one record.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from hiso.errors import HisoError, ProtocolError

FORMAT = 3
MAX_BYTES = 256 * 2**20
"""Largest accepted envelope; a log of a million rounds with P = 5 takes half of it."""
MAX_REPLIES = 900_000
"""Bytes of replies in one message; nginx and the server refuse more than 1 MB."""
RESTARTED = "WorkerRestarted"
"""Kind of error: the worker was restarted before it had answered."""
BUSY = "WorkerBusy"
"""Kind of error: the worker did not finish in time, or works on a newer request."""
LOST = "MessageLost"
"""Kind of error: Flower reports that no answer will come, or the time for it is over."""
CUT_SHORT = "CutShort"
"""Kind of error: an answer was announced, and not uploaded in time."""
UNKNOWN_RUN = "UnknownRun"
"""Kind of error: the worker needs the run's identity before it can take part."""
BEHIND = "Behind"
"""Kind of error: the worker lacks records before the sent ones; it reports its position."""
_HEAD = struct.Struct("<4sHI")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Envelope:
    """One message.

    Attributes:
        kind: The kind of message. Requests: "hello", "round", "fold", "count". Answers: "hello",
            "replies", "folded", "counts", "error".
        facts: Any JSON values.
        body: The bytes of a plan; or replies, see `join`.
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


def join(parts: Iterable[bytes]) -> bytes:
    """One body of several parts: of each its length (u32), then its bytes."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split(body: bytes) -> list[bytes]:
    """The parts of which `join` made the body.

    Raises:
        ProtocolError: The body is cut short.
    """
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        start = at + _LENGTH.size
        length = int.from_bytes(body[at:start], "little")
        at = start + length
        if at > len(body):
            raise ProtocolError("the replies of a message are cut short")
        parts.append(body[start:at])
    return parts


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def pack(envelope: Envelope) -> RecordDict:
    """An envelope as the content of a Flower message."""
    return RecordDict({"hiso": ConfigRecord({"envelope": envelope.to_bytes()})})


def unpack(content: RecordDict) -> Envelope:
    """The envelope in the content of a Flower message.

    Raises:
        ProtocolError: There is no envelope, or it is malformed.
    """
    try:
        record = content["hiso"]
    except KeyError as error:
        raise ProtocolError("a message without an envelope") from error
    if not isinstance(record, ConfigRecord):
        raise ProtocolError(f"an envelope is in a ConfigRecord, not in a {type(record).__name__}")
    return read_record(record)


def read_record(record: ConfigRecord) -> Envelope:
    """The envelope in a record.

    Raises:
        ProtocolError: There is no envelope, or it is malformed, or larger than `MAX_BYTES`.
    """
    data = record.get("envelope")
    if not isinstance(data, bytes):
        raise ProtocolError(f"an envelope is bytes, not {type(data).__name__}")
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"an envelope of {len(data)} bytes; {MAX_BYTES} are allowed")
    return Envelope.from_bytes(data)
