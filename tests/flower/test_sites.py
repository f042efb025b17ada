"""What a site says in its hello: anything may come, and the server goes on."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hiso.core.identity import Identity
from hiso.core.method.registry import HiSo
from hiso.flower.envelope import Envelope
from hiso.flower.exchange import Answer
from hiso.flower.rounds import differences
from hiso.flower.sites import Sites

GOOD = Identity(
    method=HiSo(),
    seed=0,
    clients=3,
    batch_size=4,
    per_client=False,
    model={"fingerprint": "ab"},
    task={"name": "t"},
    data={"max_length": 3},
)
DEEP = 50_000


def with_hyper(name: str, value: str) -> str:
    return GOOD.text.replace('"hyper":{', '"hyper":{' + f"{json.dumps(name)}:{value},")


TEXTS = {
    "1e999": GOOD.text.replace('"lr":0.0003', '"lr":1e999'),
    "1e300": GOOD.text.replace('"lr":0.0003', '"lr":1e300'),
    "400 digits": GOOD.text.replace('"lr":0.0003', '"lr":1' + "0" * 400),
    "unknown": with_hyper("evil\n\x1b[31m", "1"),
    "unknown 1e999": with_hyper("evil", "1e999"),
    "batch 1e999": GOOD.text.replace('"batch_size":4', '"batch_size":1e999'),
    "labels": GOOD.text.replace('"name":"hiso"', '"labels":1000000000,"name":"hiso"'),
    "labels of 400 digits": GOOD.text.replace(
        '"name":"hiso"', '"labels":1' + "0" * 400 + ',"name":"hiso"'
    ),
    "deep": GOOD.text.replace('{"name":"t"}', "[" * DEEP + "]" * DEEP),
    "deep mappings": GOOD.text.replace('{"name":"t"}', '{"a":' * 900 + "1" + "}" * 900),
    "surrogate": GOOD.text.replace('{"name":"t"}', '"\ud800"'),
    "long": GOOD.text.replace('"t"', '"' + "t" * 2**20 + '"'),
    "null": "null",
    "empty": "",
}


def greeted(text: Any, client: Any = 1, data: Any = "0" * 32) -> Sites:
    sites = Sites(None, 3)  # pyright: ignore[reportArgumentType]
    facts = {
        "clients": [client],
        "position": 0,
        "run": None,
        "chain": "",
        "weights": 5,
        "data": data,
        "identity": text,
    }
    sites.greet(Answer(7, Envelope("hello"), Envelope("hello", facts), 100))
    return sites


@pytest.mark.parametrize("data", [10**31, "0" * 31, "0" * 32 + "\n", ["0" * 32], {}, True])
def test_a_mark_of_data_that_is_none_is_refused(data):
    assert greeted(GOOD.text, data=data).by_client == {}


def test_a_good_hello_is_taken():
    assert greeted(GOOD.text).by_client[1].identity == GOOD


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_an_identity_that_is_none_is_refused_with_a_reason(text, caplog):
    assert text != GOOD.text
    with caplog.at_level(logging.INFO):
        assert greeted(text).by_client == {}
    (said,) = caplog.messages
    assert said.startswith("node 7")
    assert said.isprintable()
    assert len(said) < 1100


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    at=st.integers(0, len(GOOD.text) - 1),
    length=st.integers(0, 20),
    junk=st.one_of(st.text(max_size=8), st.sampled_from(["1e999", "-1", '"', "{", "null", "[]"])),
)
@example(at=0, length=0, junk="")
def test_a_hello_with_any_change_raises_nothing(at, length, junk):
    sites = greeted(GOOD.text[:at] + junk + GOOD.text[at + length :])
    for site in list(sites.by_client.values()):
        if wrong := differences(lambda labels: GOOD, site.identity):
            sites.refuse(site, wrong)
            assert sites.by_client == {}


@pytest.mark.parametrize("client", [None, True, -1, 3, 10**400, "1\n\x1b", [1], 1e308, "x" * 10**6])
def test_a_client_that_is_no_number_is_refused_with_a_reason(client, caplog):
    with caplog.at_level(logging.INFO):
        assert greeted(GOOD.text, client).by_client == {}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].isprintable()
    assert len(caplog.messages[0]) < 1100


def test_texts_of_a_site_reach_the_log_as_one_line_each(caplog):
    evil = "gone\n2026-01-01 00:00:00 INFO run finished\x1b[2J"
    sites = greeted(GOOD.text)
    with caplog.at_level(logging.INFO):
        sites.greet(Answer(7, Envelope("hello"), Envelope.of_error("X", evil), 9))
        sites = greeted(GOOD.text.replace('"seed"', f'{json.dumps(evil)}:1,"seed"'))
        (site,) = sites.by_client.values()
        sites.refuse(site, differences(lambda labels: GOOD, site.identity))
    assert len(caplog.messages) == 3
    assert all(said.isprintable() for said in caplog.messages)


def test_a_new_node_is_expected_until_it_answers():
    class Nodes:
        def nodes(self):
            return {7: None, 8: None}

        def send(self, requests, ttl):
            return dict.fromkeys(requests, 1)

    sites = Sites(Nodes(), 3)  # pyright: ignore[reportArgumentType]
    assert not sites.expects_more
    sites.look()
    for node in (7, 8):
        assert sites.expects_more
        sites.greet(Answer(node, Envelope("hello"), Envelope.of_error("X", "later"), 9))
    assert not sites.expects_more
