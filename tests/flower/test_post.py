"""Messages that Flower does not take over come back as errors.

An overloaded SuperLink cannot be had in a test, and Flower makes messages in processes of its own:
both are played here.
"""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict

from hiso.flower.envelope import LOST, Envelope, pack
from hiso.flower.exchange import MAX_ANSWER, TOO_LARGE, Post


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


class Echo:
    """A grid that keeps what is sent, and answers it with given contents."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.answers: list[RecordDict] = []

    def push_messages(self, messages):
        self.sent += messages
        return [f"id {len(self.sent) - len(messages) + n}" for n in range(len(messages))]

    def pull_messages(self, message_ids):
        return [Said(i, content) for i, content in zip(message_ids, self.answers, strict=True)]


class Said:
    """An answer as Flower gives it."""

    def __init__(self, message_id: str, content: RecordDict) -> None:
        self.metadata, self.content = self, content
        self.reply_to_message_id = message_id

    def has_error(self) -> bool:
        return False


@pytest.fixture
def echo(monkeypatch) -> Echo:
    monkeypatch.setattr("hiso.flower.exchange.Message", message)
    return Echo()


def message(content: RecordDict, *, dst_node_id: int, group_id: str, ttl: float, **_) -> Message:
    """As in a process of a server application, for which Flower has a run's number."""
    metadata = Metadata(1, "", 1, dst_node_id, "", group_id, 0.0, ttl, "query")
    return Message(content, metadata=metadata)  # pyright: ignore[reportCallIssue]


def test_nobody_can_guess_what_the_id_of_a_message_is_made_of(echo):
    """Flower's id of a message is a hash of it; two equal requests have different hashes."""
    post = Post(echo)
    for _ in range(2):
        post.send({7: Envelope("round", {}, b"plan")}, ttl=60)
    first, second = echo.sent
    assert first.content["hiso"].object_id == second.content["hiso"].object_id
    assert first.object_id != second.object_id
    numbers = [bytes.fromhex(sent.metadata.group_id.split()[-1]) for sent in echo.sent]
    assert len(numbers[0]) == len(numbers[1]) == 16
    assert numbers[0] != numbers[1]


@pytest.mark.parametrize("excess", [0, 1])
def test_an_answer_above_one_mebibyte_is_not_read(echo, excess, monkeypatch):
    post = Post(echo)
    post.send({7: Envelope("round")}, ttl=60)
    empty = len(Envelope("replies").to_bytes())
    good = Envelope("replies", {}, bytes(MAX_ANSWER - empty + excess))
    echo.answers = [pack(good)]
    if excess:  # reading would fail
        monkeypatch.setattr("hiso.flower.exchange.unpack", None)
    (answer,) = post.collect()
    assert answer.size == MAX_ANSWER + excess
    assert answer.envelope.facts.get("error") == (TOO_LARGE if excess else None)


@pytest.mark.parametrize(
    "content", [{}, {"hiso": ConfigRecord({"envelope": 7})}, {"hiso": ConfigRecord({})}]
)
def test_an_answer_without_an_envelope_is_an_error(echo, content):
    post = Post(echo)
    post.send({7: Envelope("round")}, ttl=60)
    echo.answers = [RecordDict(content)]
    (answer,) = post.collect()
    assert answer.envelope.facts["error"] == "ProtocolError"
