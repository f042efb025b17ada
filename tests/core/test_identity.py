"""The identity: one canonical text, and nothing that it does not understand."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.method.registry import METHODS, HiSo, Momentum, ZoSgd
from hiso.errors import ProtocolError, SettingsError

WHOLE = Identity(
    method=HiSo(lr=3e-4, feed="all"),
    seed=2**64 - 1,
    noise="gaussian",
    dtype="bfloat16",
    clients=6,
    batch_size=16,
    per_client=True,
    model={"fingerprint": "ab"},
    task={"name": "sst2", "labels": [" bad", " good"]},
    data={"fingerprint": "cd", "max_length": 64},
    partition="ef",
    joint=False,
    loss={"name": "mse", "version": 2},
    facts={"note": "µ"},
)


@dataclass(frozen=True, kw_only=True)
class Own(Method):
    name: ClassVar[str] = "own"
    decay: float = 0.1


def test_the_text_is_canonical_and_starts_the_chain():
    """Pinned: what runs of before have in their ledgers."""
    identity = Identity(method=ZoSgd(lr=0.5), seed=3, clients=2, partition="x", joint=True)
    assert identity.text == (
        '{"clients":2,"dtype":"float32","formats":{"noise":1,"record":1},"joint":true,"method":'
        '{"feed":"first","hyper":{"lr":0.5},"name":"zo_sgd"},"noise":"binomial","partition":"x",'
        '"seed":3}'
    )
    assert identity.root == hashlib.sha256(b"hiso-run\0" + identity.text.encode()).digest()
    assert identity.run == identity.root.hex()


@pytest.mark.parametrize("identity", [WHOLE, Identity(method=Momentum(), seed=0)])
def test_it_survives_its_text(identity):
    again = Identity.parse(identity.text)
    assert again == identity
    assert hash(again) == hash(identity)
    for field in fields(Identity):
        assert getattr(again, field.name) == getattr(identity, field.name)
    assert again.differences(identity) == []


def test_every_field_makes_another_run():
    others = {
        "method": HiSo(lr=1e-3, feed="all"), "seed": 1, "noise": "binomial", "dtype": "float32",
        "clients": 7, "batch_size": 8, "per_client": False, "model": None, "task": None,
        "data": {"max_length": 64}, "partition": None, "joint": True, "loss": None, "facts": {},
    }  # fmt: skip
    assert {*others, "text"} == {field.name for field in fields(Identity)}
    roots = {replace(WHOLE, **{name: value}).root for name, value in others.items()}
    assert len(roots | {WHOLE.root}) == len(others) + 1


def test_differences_name_what_differs():
    other = replace(WHOLE, seed=5, method=HiSo(lr=1.0, feed="all"))
    assert WHOLE.differences(other) == [
        "method.hyper.lr: 0.0003, 1.0",
        "seed: 18446744073709551615, 5",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        {"seed": -1}, {"seed": 2**64}, {"seed": True}, {"seed": 1.0}, {"noise": "uniform"},
        {"dtype": "float64"}, {"facts": {"seed": 1}}, {"data": float("nan")}, {"loss": object()},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(SettingsError):
        Identity(**{"method": ZoSgd(), "seed": 0, **bad})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": None}, {"seed": "0"}, {"method": None}, {"method": {"name": "zo_sgd"}},
        {"method": {"name": "zo_sgd", "hyper": {"nope": 1.0}}},
        {"method": {"name": "zo_sgd", "hyper": {"lr": "x"}}},
        {"method": {"name": "zo_sgd", "hyper": {"lr": -1.0}}},
        {"method": {"name": "hiso", "hyper": {"nu": 5.0}}},
        {"method": {"name": "zo_sgd", "hyper": {"lr": 1.0}, "feed": "some"}},
        {"method": {"name": "nobody", "hyper": {"lr": 1.0}}},
        {"method": {"hyper": {"lr": 1.0}}},
        {"formats": {"record": 2, "noise": 1}}, {"formats": None}, {"noise": "uniform"},
    ],
)  # fmt: skip
def test_a_text_that_cannot_be_run_is_refused(change):
    text = json.dumps(json.loads(Identity(method=ZoSgd(), seed=0).text) | change)
    with pytest.raises(ProtocolError):
        Identity.parse(text)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"seed":1}', '"x"', "1e999"])
def test_what_is_no_identity_is_refused(text):
    with pytest.raises(ProtocolError):
        Identity.parse(text)


@given(st.text(max_size=60))
def test_noise_is_refused(text):
    with pytest.raises(ProtocolError):
        Identity.parse(text)


def test_a_text_of_before_is_kept_as_it_was():
    """Without formats, noise or feed, and with facts of its own: its chain does not move."""
    text = '{"method":{"hyper":{"lr":0.05},"name":"zo_sgd"},"model":"toy","note":1,"seed":7}'
    identity = Identity.parse(text)
    assert identity.text == text
    assert identity.root == hashlib.sha256(b"hiso-run\0" + text.encode()).digest()
    assert (identity.method, identity.seed, identity.model) == (ZoSgd(lr=0.05), 7, "toy")
    assert (identity.noise, identity.facts) == ("binomial", {"note": 1})


def test_a_method_of_ones_own_is_read_by_its_class():
    identity = Identity(method=Own(decay=0.5), seed=0)
    assert Own.name not in METHODS
    with pytest.raises(ProtocolError):
        Identity.parse(identity.text)
    assert Identity.parse(identity.text, Own).method == Own(decay=0.5)
