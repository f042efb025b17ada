"""Messages that Flower does not take over come back as errors.

An overloaded SuperLink cannot be had in a test, and Flower makes messages in processes of its own:
both are played here.
"""

from __future__ import annotations

import pytest

from hiso.flower.envelope import LOST, Envelope
from hiso.flower.exchange import Post


class Overloaded:
    """A grid as an overloaded SuperLink makes it: it fails, or takes nothing, as for its size."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def push_messages(self, messages):
        if self.fails:
            raise RuntimeError("the push session may have expired")
        return []

    def pull_messages(self, message_ids):
        raise AssertionError("nothing is under way")


@pytest.mark.parametrize("fails", [True, False])
def test_what_cannot_be_sent_is_lost_at_once(fails, monkeypatch):
    monkeypatch.setattr("hiso.flower.exchange.Message", lambda content, **_: content)
    post = Post(Overloaded(fails))
    requests = {7: Envelope("round", {}, b"plan"), 8: Envelope("hello")}
    assert post.send(requests, ttl=60) == {}
    answers = post.collect()
    assert {answer.node: answer.request for answer in answers} == requests
    assert {answer.envelope.facts["error"] for answer in answers} == {LOST}
    assert post.collect() == []
