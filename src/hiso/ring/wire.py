"""Plan and reply as bytes, for any transport.

Little-endian, in this order (`FORMAT` 3). A reader accepts canonical bytes only: writing the
result again gives the same bytes.

    plan    "HPLN" · format u16 · flags u16 (1: central differences, 2: per-client directions)
            run 32 bytes · chain 32 bytes · round u32 · client u32
            steps u32 · directions u32 · mu f64 · changes u16 · records u32
            each change, by ascending name:  length u8 · name (UTF-8) · value f64
            each record:  length u32 · its canonical bytes
    reply   "HRPL" · format u16 · flags u16 (1: curvature, 2: facts, 4: no loss)
            run 32 bytes · asked 32 bytes · round u32 · client u32
            digest u64 · loss f64 (0 if there is none) · examples u64 · steps u32 · directions u32
            scalars f32[steps, directions] · curvature f32[steps, directions], if flagged
            if flagged:  facts u16 · each, by ascending name:  length u8 · name (UTF-8) · value f32

The server checks the content of a reply (finite numbers, right round, expected client).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace

import numpy as np

from hiso.core.record import Record, pack_named, unpack_named
from hiso.errors import ProtocolError
from hiso.ring.messages import Plan, Reply

FORMAT = 3
_PLAN, _REPLY = b"HPLN", b"HRPL"
_HEAD = struct.Struct("<4sHH32s32sII")
_PLAN_BODY = struct.Struct("<IIdHI")
_REPLY_BODY = struct.Struct("<QdQII")
_CENTRAL, _OWN = 1, 2
_CURVATURE, _FACTS, _NO_LOSS = 1, 2, 4


def plan_to_bytes(plan: Plan) -> bytes:
    """Canonical bytes of a plan.

    Raises:
        ProtocolError: A field cannot be encoded, for example a run that is not a SHA-256 in hex.
    """
    flags = _CENTRAL * (plan.scheme == "central") | _OWN * (plan.stream > 0)
    try:
        parts = [
            _head(_PLAN, flags, plan, plan.chain),
            _PLAN_BODY.pack(
                plan.steps, plan.directions, plan.mu, len(plan.changes), len(plan.records)
            ),
        ]
        for name in sorted(plan.changes):
            encoded = name.encode()
            parts.append(
                struct.pack(f"<B{len(encoded)}sd", len(encoded), encoded, plan.changes[name])
            )
        for record in plan.records:
            data = record.to_bytes()
            parts += [struct.pack("<I", len(data)), data]
    except (struct.error, ValueError, OverflowError) as error:
        raise ProtocolError(f"plan of round {plan.round} cannot be sent: {error}") from error
    return b"".join(parts)


def plan_from_bytes(data: bytes) -> Plan:
    """Reads the canonical bytes of a plan.

    Raises:
        ProtocolError: The bytes are too short, too long, of another format, or not canonical; or a
            field of the plan is out of range.
    """
    try:
        flags, run, chain, number, client = _read_head(_PLAN, data)
        steps, directions, mu, changed, recorded = _PLAN_BODY.unpack_from(data, _HEAD.size)
        at = _HEAD.size + _PLAN_BODY.size
        changes: dict[str, float] = {}
        for _ in range(changed):
            (length,) = struct.unpack_from("<B", data, at)
            name, value = struct.unpack_from(f"<{length}sd", data, at + 1)
            changes[name.decode()] = value
            at += 1 + length + 8
        records: list[Record] = []
        for _ in range(recorded):
            (length,) = struct.unpack_from("<I", data, at)
            records.append(Record.from_bytes(data[at + 4 : at + 4 + length]))
            at += 4 + length
        plan = Plan(
            run=run,
            round=number,
            client=client,
            records=tuple(records),
            chain=chain,
            steps=steps,
            directions=directions,
            mu=mu,
            scheme="central" if flags & _CENTRAL else "forward",
            stream=client + 1 if flags & _OWN else 0,
            changes=changes,
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise ProtocolError(f"plan of {len(data)} bytes is malformed: {error}") from error
    if plan_to_bytes(plan) != data:
        raise ProtocolError(f"plan of round {plan.round} is not in canonical form")
    return plan


def hash_question(plan: Plan) -> bytes:
    """SHA-256 of the plan's canonical bytes without records: everything that determines the reply.

    Records are left out because they depend on what the client has already folded; the chain hash
    represents the whole log. Equal questions have equal replies at any time.
    """
    return hashlib.sha256(plan_to_bytes(replace(plan, records=()))).digest()


def reply_to_bytes(reply: Reply) -> bytes:
    """Canonical bytes of a reply.

    Raises:
        ProtocolError: A field cannot be encoded.
    """
    try:
        steps, directions = reply.scalars.shape
        arrays = [reply.scalars] if reply.curvature is None else [reply.scalars, reply.curvature]
        if {array.shape for array in arrays} != {(steps, directions)}:
            raise ValueError("scalars and curvature have different shapes")
        flags = _CURVATURE * (reply.curvature is not None) | _FACTS * bool(reply.facts)
        flags |= _NO_LOSS * (reply.loss is None)
        loss = 0.0 if reply.loss is None else reply.loss
        count = struct.pack("<H", len(reply.facts)) if reply.facts else b""
        return b"".join(
            [
                _head(_REPLY, flags, reply, reply.asked),
                _REPLY_BODY.pack(reply.digest, loss, reply.examples, steps, directions),
                *(array.astype("<f4").tobytes() for array in arrays),
                count + pack_named(reply.facts),
            ]
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise ProtocolError(f"reply of round {reply.round} cannot be sent: {error}") from error


def reply_from_bytes(data: bytes) -> Reply:
    """Reads the canonical bytes of a reply.

    Raises:
        ProtocolError: The bytes are too short, too long, of another format, or not canonical.
    """
    try:
        flags, run, asked, number, client = _read_head(_REPLY, data)
        digest, loss, examples, steps, directions = _REPLY_BODY.unpack_from(data, _HEAD.size)
        at, arrays = _HEAD.size + _REPLY_BODY.size, 2 if flags & _CURVATURE else 1
        values = np.frombuffer(data, "<f4", arrays * steps * directions, at).astype(np.float32)
        at, facts = at + values.nbytes, dict[str, float]()
        if flags & _FACTS:
            (count,) = struct.unpack_from("<H", data, at)
            facts, _ = unpack_named(data, at + 2, count)
        values = values.reshape(arrays, steps, directions)
        reply = Reply(
            run=run,
            round=number,
            client=client,
            asked=asked,
            digest=digest,
            scalars=values[0],
            curvature=values[1] if arrays == 2 else None,
            loss=None if flags & _NO_LOSS else loss,
            examples=examples,
            facts=facts,
        )
    except (struct.error, ValueError, OverflowError) as error:
        raise ProtocolError(f"reply of {len(data)} bytes is malformed: {error}") from error
    if reply_to_bytes(reply) != data:
        raise ProtocolError(f"reply of client {client} in round {number} is not in canonical form")
    return reply


def _head(magic: bytes, flags: int, message: Plan | Reply, content: bytes) -> bytes:
    run = bytes.fromhex(message.run)
    if len(run) != 32 or len(content) != 32:
        raise ValueError("run, and chain or asked, must be 32 bytes")
    return _HEAD.pack(magic, FORMAT, flags, run, content, message.round, message.client)


def _read_head(magic: bytes, data: bytes) -> tuple[int, str, bytes, int, int]:
    found, version, flags, run, content, number, client = _HEAD.unpack_from(data)
    if found != magic:
        raise ValueError(f"it begins with {found!r}, not {magic!r}")
    if version != FORMAT:
        raise ValueError(
            f"it has wire format {version}, this hiso speaks {FORMAT}: "
            "install the same version of hiso everywhere"
        )
    return flags, run.hex(), content, number, client
