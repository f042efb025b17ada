"""What makes a run this run: ledger, replica, server and client are made from one value."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, Self, cast, get_args

from hiso.core import record
from hiso.core.method.base import Method
from hiso.core.method.registry import METHODS, with_auto_lr, with_label_bias
from hiso.core.noise import NOISE_FORMAT, Noise
from hiso.errors import ProtocolError, SettingsError

Dtype = Literal["float32", "bfloat16", "float16"]
_FORMATS = {"record": record.FORMAT, "noise": NOISE_FORMAT}
_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """All that decides which bits a run's replicas have, besides its log. It never changes.

    Its canonical text is JSON in ASCII with sorted keys and without spaces; fields that are None
    are left out. The chain of the run's log begins with the hash of this text. Two identities are
    equal if their texts are.

    Example:
        >>> from hiso.core.method.registry import HiSo
        >>> identity = Identity(method=HiSo(lr=0.01), seed=0, loss={"name": "mse", "version": 1})
        >>> Identity.parse(identity.text) == identity
        True

    Attributes:
        method: The method, with the hyper-parameters that the run began with.
        seed: Key of directions, sampling and batches, unsigned 64 bits.
        noise: Law of the directions.
        dtype: Precision of forward passes; weights are float32.
        clients: Number of clients M.
        batch_size: Examples per client and local step.
        per_client: Whether every client measures along directions of its own. In the text it is
            `directions`: shared, or per-client.
        model: Fingerprint of the base model.
        task: What is learned: name, prompt, label words.
        data: Fingerprint of the data and how they were cut.
        partition: Fingerprint of which client holds what.
        joint: Whether clients share forward passes, which changes how losses are rounded.
        loss: Name and version of a loss function that is a Python object: give another version
            when you change it.
        facts: Anything else that is JSON.

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
        """Reads a canonical text, also that of a ledger made before identities had this type.

        Args:
            text: The text, which is kept: equal text, equal chain.
            method: The method's class, where it is not registered by its name.

        Raises:
            ProtocolError: It is not JSON, lacks a seed or a method, names a method or a format
                that is not known here, or a hyper-parameter that the method does not have or
                does not take.
        """
        try:
            values = json.loads(text)
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
        except (ValueError, KeyError, TypeError, AttributeError, SettingsError) as error:
            raise ProtocolError(f"an identity cannot be read: {error}") from error
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
        """Each key whose value differs: its name, the value of this one, that of the other."""
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
        SettingsError: `what` holds something that JSON cannot say, or NaN or infinity.
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
        kind = with_label_bias(kind, labels)
    known = kind().hyper
    if unknown := sorted(set(hyper) - set(known)):
        raise ValueError(
            f"{kind.name} has no hyper-parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return kind(**hyper, **({} if feed is None else {"feed": feed}))


def _flat(values: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """Nested mappings with dotted names: method.hyper.lr."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(cast(dict[str, Any], value), f"{head}{key}.")
        else:
            flat[f"{head}{key}"] = value
    return flat
