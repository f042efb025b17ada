"""The identity of a run, from which ledger, replica, server and client are created."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Self, cast, get_args

import numpy as np

from hiso.core import record
from hiso.core.method.base import Method
from hiso.core.method.registry import METHODS, with_auto_lr, with_label_bias
from hiso.core.noise import NOISE_FORMAT, Noise
from hiso.core.plain import plain
from hiso.errors import ProtocolError, SettingsError

Dtype = Literal["float32", "bfloat16", "float16"]
_FORMATS = {"record": record.FORMAT, "noise": NOISE_FORMAT}
_MAX_SEED = 2**64 - 1
_LARGEST = float(np.finfo(np.float32).max)
_DEEPEST = 20
"""Levels of nesting in a text that is read."""
_MOST_LABELS = 4096
"""Labels that a method in a text may have biases for, which take memory."""
_MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What a text can make of Python that is no identity."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """Everything, besides the log, that determines the bits of a run's replicas. Never changes.

    Its canonical text is JSON in ASCII with sorted keys and without spaces; fields that are None
    are left out. The chain of the run's log begins with the hash of this text. Two identities are
    equal if their texts are equal.

    Example:
        >>> from hiso.core.method.registry import HiSo
        >>> identity = Identity(method=HiSo(lr=0.01), seed=0, loss={"name": "mse", "version": 1})
        >>> Identity.parse(identity.text) == identity
        True

    Attributes:
        method: The method, with its hyper-parameters at the start of the run.
        seed: Key of directions, sampling and batches, unsigned 64 bits.
        noise: Distribution of the directions' elements.
        dtype: Precision of forward passes; weights are float32.
        clients: Number of clients M.
        batch_size: Examples per client and local step.
        per_client: Whether every client measures along its own directions. In the text this is the
            key `directions`: shared, or per-client.
        model: Fingerprint of the base model.
        task: What is learned: name, prompt, label words.
        data: Fingerprint of the data, and how examples were truncated.
        partition: Fingerprint of the assignment of examples to clients.
        joint: Whether clients share forward passes; this changes the rounding of losses.
        loss: Name and version of a loss function that is a Python object; change the version when
            you change the function.
        facts: Any other JSON values.

    Raises:
        SettingsError: A field is out of range, or not JSON with finite numbers.
    """

    method: Method
    seed: int
    noise: Noise = "binomial"
    dtype: Dtype = "float32"
    clients: int | None = None
    batch_size: int | None = None
    per_client: bool | None = None
    model: Any = None
    task: Any = None
    data: Any = None
    partition: str | None = None
    joint: bool | None = None
    loss: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    text: str = field(init=False)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SettingsError("identity: " + "; ".join(problems))
        object.__setattr__(self, "text", canonical_json(self._json(), "identity"))

    def _problems(self) -> Iterator[str]:
        if type(self.seed) is not int or not 0 <= self.seed <= _MAX_SEED:
            yield f"seed = {self.seed!r} must be a whole number in [0, 2^64)"
        if self.noise not in get_args(Noise):
            yield f"noise = {self.noise!r} must be one of {', '.join(get_args(Noise))}"
        if self.dtype not in get_args(Dtype):
            yield f"dtype = {self.dtype!r} must be one of {', '.join(get_args(Dtype))}"
        if taken := sorted(set(self.facts) & _KNOWN):
            yield f"facts name {', '.join(taken)}, which are fields of their own"

    def _json(self) -> dict[str, Any]:
        method = self.method
        known = {name: getattr(self, name) for name in _PLAIN}
        own = known.pop("per_client")
        known["directions"] = None if own is None else _STREAMS[own]
        return {
            "formats": _FORMATS,
            "method": {"name": method.name, "hyper": method.hyper, "feed": method.feed}
            | ({"auto": True} if method.auto else {})
            | ({"labels": method.labels} if method.labels else {}),
            **{name: value for name, value in known.items() if value is not None},
            **self.facts,
        }

    @classmethod
    def parse(cls, text: str, method: type[Method] | None = None) -> Self:
        """Reads a canonical text, also from a ledger that is older than this class.

        Args:
            text: The text; it is kept unchanged, so that the chain hash stays the same.
            method: The method's class, if it is not registered under its name.

        Raises:
            ProtocolError: The text is not JSON, has no seed or no method, names an unknown method
                or format, or has a hyper-parameter that the method does not have or whose value it
                refuses. No text raises anything else.
        """
        try:
            values = json.loads(text)
            text.encode()
            _check_depth(values, _DEEPEST)
            formats = values.pop("formats", _FORMATS)
            made = values.pop("method")
            kind = method or METHODS.get(made.get("name"))
            if formats != _FORMATS:
                raise ValueError(f"it has formats {formats}, this hiso reads {_FORMATS}")
            if kind is None:
                raise ValueError(
                    f"its method {made.get('name')!r} is not known here; known: "
                    f"{', '.join(METHODS)}. Pass a method of your own, or register it"
                )
            known = {name: values.pop(name) for name in _PLAIN if name in values}
            if "directions" in values:
                known["per_client"] = bool(_STREAMS.index(values.pop("directions")))
            identity = cls(method=_make(kind, made), **known, facts=values)
        except (*_MALFORMED, SettingsError) as error:
            raise ProtocolError(f"an identity cannot be read: {plain(error)}") from error
        object.__setattr__(identity, "text", text)
        return identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    @cached_property
    def root(self) -> bytes:
        """Chain hash of the empty log, 32 bytes."""
        return record.chain_root(self.text.encode())

    @property
    def run(self) -> str:
        """The run's id: the hex digits of `root`."""
        return self.root.hex()

    def differences(self, other: Identity) -> list[str]:
        """One text for each key that differs: its name, this identity's value, the other's
        value.
        """
        mine, theirs = (_flat(json.loads(identity.text)) for identity in (self, other))
        return [
            f"{key}: {mine.get(key)!r}, {theirs.get(key)!r}"
            for key in sorted({**mine, **theirs})
            if mine.get(key) != theirs.get(key)
        ]


_PLAIN = tuple(f.name for f in fields(Identity) if f.name not in ("method", "facts", "text"))
_KNOWN = {*_PLAIN, "method", "formats", "directions"}
_STREAMS = ("shared", "per-client")


def canonical_json(value: Any, what: str) -> str:
    """JSON with sorted keys and no spaces, in ASCII: equal values have equal text.

    Raises:
        SettingsError: `what` holds a value that JSON cannot represent, or NaN or infinity.
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{what} must be JSON with finite numbers: {error}") from error


def _make(kind: type[Method], made: Mapping[str, Any]) -> Method:
    hyper, feed = made["hyper"], made.get("feed")
    if made.get("auto") and not kind.auto:
        kind = with_auto_lr(kind)
    if (labels := made.get("labels")) and not kind.labels:
        if type(labels) is not int or labels > _MOST_LABELS:
            raise ValueError(f"its method has {labels!r} labels, at most {_MOST_LABELS} are read")
        kind = with_label_bias(kind, labels)
    known = kind().hyper
    if unknown := sorted(set(hyper) - set(known)):
        raise ValueError(
            f"{kind.name} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    odd = [name for name, value in hyper.items() if not abs(value) <= _LARGEST]
    if odd:
        raise ValueError(f"{', '.join(odd)} of {kind.name} is not in the range of float32")
    return kind(**hyper, **({} if feed is None else {"feed": feed}))


def _check_depth(value: Any, left: int) -> None:
    if not left:
        raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
    if isinstance(value, dict):
        value = list(cast(dict[str, Any], value).values())
    if isinstance(value, list):
        for inner in cast(list[Any], value):
            _check_depth(inner, left - 1)


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names: method.hyper.lr."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(cast(dict[str, Any], value), f"{head}{key}.")
        else:
            flat[f"{head}{key}"] = value
    return flat
