"""The record: everything that one round adds to the log, and everything that replay reads.

Canonical bytes, little-endian, in this order (`FORMAT` 1):

    magic "HISO" · format u16 · flags u16 (1: curvature, 2: facts)
    round u32 · terms u32 · changes u16
    each change, in ascending order of name:  length u8 · name (UTF-8) · value f32
    step u16[terms] · stream u32[terms] · direction u16[terms] · coefficient f32[terms]
    curvature f32[terms], if flagged
    if flagged:  facts u16 · each fact as a change, in ascending order of name

The chain hash of a log is SHA-256(previous chain hash + record bytes). The chain starts with the
hash of the run's identity, so different runs have different chain hashes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.errors import ProtocolError

FORMAT = 1
_MAGIC = b"HISO"
_HEADER = struct.Struct("<4sHHIIH")
CHANGES_AT = _HEADER.size - 2
"""Offset of the number of changes in a record's bytes."""
_CURVATURE, _FACTS = 1, 2
_COLUMNS: dict[str, np.dtype[Any]] = {
    "step": np.dtype(np.uint16),
    "stream": np.dtype(np.uint32),
    "direction": np.dtype(np.uint16),
    "coefficient": np.dtype(np.float32),
    "curvature": np.dtype(np.float32),
}
MAX_ROUND = MAX_STREAM = 2**32 - 1
MAX_STEP = MAX_DIRECTION = 2**16 - 1


@dataclass(frozen=True, eq=False)
class Record:
    """One committed round: ordered terms with their final coefficients, and changed values.

    In local step k the record moves the weights along the sum, over its terms, of `coefficient` ·
    u(round, k, stream, direction), divided by the method's denominator. Coefficients are already
    averaged over clients, divided by P, and rounded to float32 once.

    Attributes:
        round: Position of the record in the log, from 0.
        step: Local step k of each term, uint16 [terms]; ascending from 0 without gaps.
        stream: 0 for a direction that all clients share, i + 1 for client i's own, uint32 [terms].
        direction: Index p of the direction, uint16 [terms].
        coefficient: The factor of the direction, float32 [terms]; finite.
        curvature: The factor of the direction's square, for methods that need it, float32 [terms].
        changes: Hyper-parameters with a new value from this round on, float32.
        facts: Means over clients of the facts in their replies, float32.

    Raises:
        ProtocolError: A field is out of range, of another length, or not finite.
    """

    round: int
    step: NDArray[np.uint16]
    stream: NDArray[np.uint32]
    direction: NDArray[np.uint16]
    coefficient: NDArray[np.float32]
    curvature: NDArray[np.float32] | None = None
    changes: Mapping[str, float] = field(default_factory=dict[str, float])
    facts: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        for what in ("changes", "facts"):
            rounded = {name: float(np.float32(x)) for name, x in getattr(self, what).items()}
            object.__setattr__(self, what, rounded)
        problems = list(self._problems())
        if problems:
            raise ProtocolError(f"record of round {self.round}: " + "; ".join(problems))

    def _problems(self) -> Iterable[str]:
        if not 0 <= self.round <= MAX_ROUND:
            yield f"the round must lie in [0, {MAX_ROUND}]"
        for name, dtype in _COLUMNS.items():
            array: NDArray[Any] | None = getattr(self, name)
            if array is None:  # curvature
                continue
            if array.dtype != dtype or array.shape != self.coefficient.shape:
                yield f"{name} is {array.dtype}{list(array.shape)}, not {dtype}[{self.terms}]"
            elif dtype.kind == "f" and not np.isfinite(array).all():
                yield f"{name} is not finite"
        if self.coefficient.ndim != 1 or not self.coefficient.size:
            yield "a record needs at least one term"
        elif self.step[0] != 0 or (self.step[1:] - self.step[:-1] > 1).any():  # unsigned
            yield "local steps must ascend from 0 without gaps"
        for what, named in (("change", self.changes), ("fact", self.facts)):
            for name, value in named.items():
                if not np.isfinite(np.float32(value)) or not 0 < len(name.encode()) < 256:
                    yield f"{what} {name!r} = {value} is not a named finite number"

    @property
    def terms(self) -> int:
        """Number of terms."""
        return int(self.coefficient.size)

    @property
    def steps(self) -> int:
        """Number of local steps τ."""
        return int(self.step[-1]) + 1

    @property
    def scalars(self) -> int:
        """Number of float32 numbers that a client needs to replay this record (no seeds are
        sent).
        """
        arrays = 1 if self.curvature is None else 2
        return self.terms * arrays + len(self.changes) + len(self.facts)

    def to_bytes(self) -> bytes:
        """The canonical bytes: equal records have equal bytes on every machine."""
        flags = _CURVATURE * (self.curvature is not None) | _FACTS * bool(self.facts)
        parts = [
            _HEADER.pack(_MAGIC, FORMAT, flags, self.round, self.terms, len(self.changes)),
            pack_named(self.changes),
            self.step.astype("<u2").tobytes(),
            self.stream.astype("<u4").tobytes(),
            self.direction.astype("<u2").tobytes(),
            self.coefficient.astype("<f4").tobytes(),
        ]
        if self.curvature is not None:
            parts.append(self.curvature.astype("<f4").tobytes())
        if self.facts:
            parts += [struct.pack("<H", len(self.facts)), pack_named(self.facts)]
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Reads canonical bytes.

        Raises:
            ProtocolError: The bytes are too short, too long, of another format, or not canonical.
        """
        data = bytes(data)
        try:
            magic, version, flags, number, terms, changed = _HEADER.unpack_from(data)
            _check_format(magic, version)
            changes, at = unpack_named(data, _HEADER.size, changed)
            columns: list[NDArray[Any]] = []
            for dtype in _columns(flags):
                column = np.frombuffer(data, dtype.newbyteorder("<"), terms, at)
                columns.append(column.astype(dtype, copy=False))
                at += column.nbytes
            facts: dict[str, float] = {}
            if flags & _FACTS:
                (count,) = struct.unpack_from("<H", data, at)
                facts, at = unpack_named(data, at + 2, count)
            record = cls(number, *columns, changes=changes, facts=facts)
        except (struct.error, ValueError) as error:
            raise ProtocolError(f"record of {len(data)} bytes is malformed: {error}") from error
        if record.to_bytes() != data:
            raise ProtocolError(f"record of round {number} is not in canonical form")
        return record

    def chain(self, previous: bytes) -> bytes:
        """Chain hash of the log that ends with this record, 32 bytes."""
        return chain_of(previous, self.to_bytes())


def chain_of(previous: bytes, data: bytes) -> bytes:
    """Chain hash of the log that ends with the record of these bytes, 32 bytes."""
    return hashlib.sha256(previous + data).digest()


def round_of(data: bytes) -> int:
    """The round of the record of these bytes, of which only the header is read.

    Raises:
        ProtocolError: They are no record of this format.
    """
    if len(data) < _HEADER.size:
        raise ProtocolError(f"{len(data)} bytes are too few for a record")
    magic, version, _, number, _, _ = _HEADER.unpack_from(data)
    _check_format(magic, version)
    return number


def scalars_of(data: bytes) -> int:
    """`Record.scalars` of the record of these bytes, whose terms are not read.

    Raises:
        ProtocolError: They are too short for a record.
    """
    try:
        _, _, flags, _, terms, changed = _HEADER.unpack_from(data)
        count = terms * (1 + (flags & _CURVATURE)) + changed
        if flags & _FACTS:
            _, at = unpack_named(data, _HEADER.size, changed)
            width = sum(dtype.itemsize for dtype in _columns(flags))
            count += struct.unpack_from("<H", data, at + terms * width)[0]
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"record of {len(data)} bytes is malformed: {error}") from error
    return count


def _columns(flags: int) -> list[np.dtype[Any]]:
    """The types of the columns in a record with these flags."""
    return list(_COLUMNS.values())[: 4 + (flags & _CURVATURE)]


def _check_format(magic: bytes, version: int) -> None:
    if magic != _MAGIC:
        raise ProtocolError("these bytes are not a hiso record")
    if version != FORMAT:
        raise ProtocolError(
            f"record format {version} is not the one this hiso writes ({FORMAT}): "
            "use the version of hiso that made the run"
        )


def pack_named(values: Mapping[str, float]) -> bytes:
    """Numbers by name, in ascending order: length u8 · name (UTF-8) · value f32, each."""
    parts: list[bytes] = []
    for name in sorted(values):
        encoded = name.encode()
        length = len(encoded)
        parts.append(struct.pack(f"<B{length}sf", length, encoded, values[name]))
    return b"".join(parts)


def unpack_named(data: bytes, at: int, count: int) -> tuple[dict[str, float], int]:
    """Reads `count` numbers by name from offset `at` on; returns them and the end offset.

    Raises:
        ValueError: A name is not UTF-8.
        struct.error: The data are too short.
    """
    values: dict[str, float] = {}
    for _ in range(count):
        (length,) = struct.unpack_from("<B", data, at)
        name, value = struct.unpack_from(f"<{length}sf", data, at + 1)
        values[name.decode()] = value
        at += 1 + length + 4
    return values, at


def chain_root(identity: bytes) -> bytes:
    """Chain hash of an empty log for the run with this canonical `identity`."""
    return hashlib.sha256(b"hiso-run\0" + identity).digest()
