"""Sends messages and collects answers, with Flower's `push_messages` and `pull_messages`."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

from hiso.errors import ProtocolError
from hiso.flower.envelope import CUT_SHORT, LOST, Envelope, pack, unpack
from hiso.flower.owners import owner_of
from hiso.ring.ledger.runfile import Owner

MAX_ANSWER = 2**20
"""Largest accepted answer of a client, in bytes."""
UPLOAD = 10.0
"""Longest wait for an answer that a site has announced and is uploading, in seconds."""
TOO_LARGE = "TooLarge"
"""Kind of error: the answer was larger, and was not read."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """The answer of a node.

    Attributes:
        node: Flower's id of the node.
        request: The request.
        envelope: The answer; an error envelope if there is none.
        size: Size of the answer in bytes.
    """

    node: int
    request: Envelope
    envelope: Envelope
    size: int


@dataclass(frozen=True)
class _Sent:
    node: int
    request: Envelope
    until: float


def look_again_soon() -> None:
    """Lets Flower's grid look again after 0.05 s for an answer that is still being uploaded, and
    give it up after `UPLOAD` seconds.

    It finds many in this state, because it looks often. No setting of Flower changes that it then
    sleeps for a second, and that it goes on for minutes, during which the server does nothing
    else: a site that dies while it uploads, or never does, would stop the run.
    """
    quick = partial(pull_objects, initial_backoff=0.05, backoff_cap=1.0, max_time=UPLOAD)
    http_grid.pull_objects = quick  # pyright: ignore[reportPrivateImportUsage]


class Post:
    """Sends requests to nodes and collects the answers.

    Collects only answers to requests of this process. Answers to requests of an earlier server
    process are never fetched; Flower deletes them when their time is over.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._sent: dict[str, _Sent] = {}
        self._failed: list[Answer] = []

    def nodes(self) -> dict[int, Owner | None]:
        """The nodes that are connected according to Flower, each with its registered key.

        The SuperLink checks at each request that a node has the key of its id. A node that
        registered itself, because the SuperLink allows this, has no name; its key is None here.
        """
        return {
            node.node_id: owner_of(node.public_key, node.name) if node.name else None
            for node in self._grid.get_nodes()
        }

    def send(self, requests: Mapping[int, Envelope], ttl: float, group: str = "") -> dict[int, int]:
        """Sends a request to each node; returns the size of each in bytes.

        If Flower does not accept a request, for example because the SuperLink is overloaded, the
        next `collect` returns an error as its answer.

        A message's id is a hash of content and metadata. With a random number in the metadata, only
        the node that gets the message knows its id, and without the id nobody can answer in the
        node's place: the SuperLink does not check that an answer comes from the node that it
        names. The content has none, so that equal contents are uploaded once.
        """
        if not requests:
            return {}
        messages = [
            Message(
                pack(envelope), dst_node_id=node, message_type="query", ttl=ttl,
                group_id=f"{group} {secrets.token_hex(16)}",
            )
            for node, envelope in requests.items()
        ]  # fmt: skip
        until = time.monotonic() + ttl
        try:
            ids = self._grid.push_messages(messages)
            taken = list(zip(ids, requests.items(), strict=True))
        except Exception as error:  # the exception types are not public
            log.warning("messages could not be sent: %r", error)
            lost = Envelope.of_error(LOST, f"it could not be sent: {error!r}")
            self._failed += [Answer(node, request, lost, 0) for node, request in requests.items()]
            return {}
        for message_id, (node, request) in taken:
            if message_id:  # None: the node is gone; a new hello finds it again
                self._sent[message_id] = _Sent(node, request, until)
        return {node: len(request.to_bytes()) for node, request in requests.items()}

    def collect(self) -> list[Answer]:
        """Answers that have arrived since the last call."""
        answers, self._failed = self._failed, []
        if not self._sent:
            return answers
        for message in self._grid.pull_messages(list(self._sent)):
            sent = self._sent.pop(message.metadata.reply_to_message_id, None)
            if sent is not None:
                answers.append(_answer(sent, message))
        for message_id, sent in list(self._sent.items()):
            if time.monotonic() > sent.until:
                del self._sent[message_id]
                late = Envelope.of_error(LOST, "no answer came in time")
                answers.append(Answer(sent.node, sent.request, late, 0))
        return answers


def _answer(sent: _Sent, message: Message) -> Answer:
    if message.has_error():
        code = message.error.code
        kind = CUT_SHORT if code == ErrorCode.MESSAGE_UNAVAILABLE else LOST
        reason = f"Flower: code {code}, {message.error.reason}"
        return Answer(sent.node, sent.request, Envelope.of_error(kind, reason), 0)
    if (size := _size(message)) > MAX_ANSWER:
        reason = f"an answer of {size} bytes, {MAX_ANSWER} are allowed"
        return Answer(sent.node, sent.request, Envelope.of_error(TOO_LARGE, reason), size)
    try:
        envelope = unpack(message.content)
    except ProtocolError as error:
        return Answer(sent.node, sent.request, Envelope.of_exception(error), 0)
    return Answer(sent.node, sent.request, envelope, len(envelope.to_bytes()))


def _size(message: Message) -> int:
    """The size of an answer's envelope in bytes, without reading it; 0 if there is none."""
    record = message.content.config_records.get("hiso", {})
    data = record.get("envelope")
    return len(data) if isinstance(data, bytes) else 0
