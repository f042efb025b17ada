"""A site's connection to a SuperLink, through Flower's Fleet interface.

This is the only module that uses that interface, which is internal to Flower 1.41. Flower's own
function above it, `http_request_response`, ends the process when it cannot connect; so this module
uses the client below it. It never asks for an app's code.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from hiso.flower.access import Access
from hiso.run.folder import write_text

INTERVAL = 10.0
"""Announced seconds between heartbeats, the least that Flower accepts. A SuperLink gives a site up
that has been silent for two intervals."""
_BEAT = 6.0
"""Seconds after which a heartbeat is due."""


class Away(Exception):
    """The SuperLink cannot be used now, and the text says why. Try again later."""


class Ended(Exception):
    """Nobody waits for this message any more."""


@dataclass(frozen=True)
class Request:
    """A message for this site; its content is still at the SuperLink."""

    message: Message
    tree: message_pb2.ObjectTree


class Fleet:
    """Pulls the messages for one site, and pushes its answers. For one thread.

    Node and unanswered requests are kept in a file, so that the process that takes over from a
    killed one continues as the same node, and can tell the senders what happened.

    Attributes:
        node: Flower's id of this site's node; 0 before the first `join`.
        unanswered: Requests that were pulled and not answered, by message id.
    """

    def __init__(self, access: Access, folder: Path) -> None:
        """Connects to nothing yet.

        Args:
            access: How to reach the SuperLink.
            folder: The folder for `node.json`, and for `node.key` if the site makes its own key.

        Raises:
            SettingsError: The certificate or key cannot be read.
        """
        key = access.load_key(folder)
        self._public, self._registers = public_key_to_bytes(key.public_key()), access.key is None
        self._client = FleetHttpClient.from_server_address(
            access.address,
            access.ca is None,
            access.load_certificate(),
            [_Version(), NodeAuthHttpInterceptor(key, key.public_key())],
        )
        self._file = folder / "node.json"
        self.node, self.unanswered = _recall(self._file)
        self._joined, self._due = False, 0.0
        self._read: message_pb2.ConfirmMessageReceivedRequest | None = None

    def join(self) -> None:
        """Takes part as a node; sends a heartbeat if one is due.

        Raises:
            Away: There is no SuperLink, or it does not accept the key.
        """
        if time.monotonic() < self._due:
            return
        if self.node == 0 or not self._beat():
            self._activate()
        self._joined, self._due = True, time.monotonic() + _BEAT

    def knows_key(self) -> bool:
        """Whether the SuperLink knows the site's key. Nothing changes there.

        It looks for the key before it looks at the interval, and an interval of 0 s is refused.

        Raises:
            Away: There is no SuperLink, or it refuses requests of this version or clock.
        """
        request = fleet_pb2.ActivateNodeRequest(public_key=self._public, heartbeat_interval=0)
        with _or_away():
            try:
                self._client.ActivateNode(request)
            except httpx.HTTPStatusError as error:
                said = FlowerError.from_json(error.response.text)
                match said.code if said else None:
                    case ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
                        return True
                    case ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
                        return False
                    case _:
                        raise
            return True

    def pull(self) -> Request | None:
        """The next message for this site, if there is one."""
        told = self._call("PullMessages", fleet_pb2.PullMessagesRequest(node=self._me))
        if not told.messages_list:
            return None
        request = Request(message_from_proto(told.messages_list[0]), told.message_object_trees[0])
        self.unanswered[request.message.metadata.message_id] = request
        self._note()
        return request

    def content(self, request: Request) -> ConfigRecord | None:
        """Fetches the only record of a message; None while the sender is still uploading it.

        The SuperLink may forget the message when the next one comes: until then the sender may be
        uploading parts that are not fetched here.

        Raises:
            Away: Try again.
            Ended: It is gone, or it is not a message with one record of plain values; then it is
                not even fetched.
        """
        records = list(request.tree.children[0].children) if request.tree.children else []
        if len(records) != 1 or records[0].children:
            raise Ended("it is not one record of plain values")
        about = {"node": self._me, "run_id": request.message.metadata.run_id}
        told = self._call(
            "PullObject",
            message_pb2.PullObjectRequest(object_id=records[0].object_id, **about),
        )
        if not told.object_found:
            raise Ended("its content is gone")
        if not told.object_available:
            return None
        if self._read is not None and self._read.run_id == about["run_id"]:
            self._call("ConfirmMessageReceived", self._read)
        self._read = message_pb2.ConfirmMessageReceivedRequest(
            message_object_id=request.tree.object_id, **about
        )
        try:
            return ConfigRecord.inflate(told.object_content)
        except Exception as error:  # anything may have been sent
            raise Ended(f"its record cannot be read: {error!r}") from error

    def may_answer(self, request: Request) -> bool:
        """Whether a request is for this node, and somebody may still wait for the answer."""
        about = request.message.metadata
        return about.dst_node_id == self.node and time.time() < about.created_at + about.ttl

    def answer(self, request: Request, content: RecordDict | Error) -> None:
        """Sends an answer. May be repeated after `Away`.

        Raises:
            Ended: The sender's run has ended.
        """
        reply = Message(content, reply_to=request.message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            bare = message_to_proto(remove_content_from_message(reply))
        told = self._call(
            "PushMessages",
            fleet_pb2.PushMessagesRequest(
                node=self._me,
                messages_list=[bare],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            ),
        )
        for identifier in told.objects_to_push:
            pushed = self._call(
                "PushObject",
                message_pb2.PushObjectRequest(
                    node=self._me,
                    run_id=reply.metadata.run_id,
                    object_id=identifier,
                    object_content=objects[identifier].deflate(),
                    session_id=told.session_id,
                ),
            )
            if not pushed.stored:
                raise Away("the SuperLink did not store an answer")
        self.forget(request)

    def forget(self, request: Request) -> None:
        """Takes a request to be answered."""
        self.unanswered.pop(request.message.metadata.message_id, None)
        self._note()

    def leave(self) -> None:
        """Tells the SuperLink that the site is going, and closes the connection."""
        if self._joined:
            with suppress(Away, Ended):
                request = fleet_pb2.DeactivateNodeRequest(node_id=self.node)
                self._call("DeactivateNode", request)
        self._joined = False
        self._client.close()

    @property
    def _me(self) -> Node:
        return Node(node_id=self.node)

    def _beat(self) -> bool:
        """Whether the SuperLink knows the node; a heartbeat also wakes a node up that was gone."""
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._me, heartbeat_interval=INTERVAL)
        with _or_away():
            try:
                return self._client.SendNodeHeartbeat(request).success
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    return False
                raise

    def _activate(self) -> None:
        self._joined = False
        if self._registers:
            request = fleet_pb2.RegisterNodeFleetRequest(public_key=self._public)
            self._call("RegisterNode", request, ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE)
        request = fleet_pb2.ActivateNodeRequest(
            public_key=self._public, heartbeat_interval=INTERVAL
        )
        told = self._call("ActivateNode", request, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED)
        if told is None:
            raise Away(
                "the SuperLink does not accept this site's key: it is not registered there, or "
                "another process with this key has been connected within the last "
                f"{2 * INTERVAL:.0f} s"
            )
        if told.node_id != self.node:
            self.node, self.unanswered = told.node_id, {}
            self._note()

    def _call(self, name: str, request: Any, expected: int | None = None) -> Any:
        """Flower's answer to a request; None if it is the `expected` error."""
        with _or_away():
            try:
                return getattr(self._client, name)(request)
            except httpx.HTTPStatusError as error:
                code, said = error.response.status_code, FlowerError.from_json(error.response.text)
                if expected is not None and said is not None and said.code == expected:
                    return None
                if said is not None and said.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
                    raise Ended(said.message) from error
                if code == httpx.codes.UNAUTHORIZED:  # it has lost its state, or a clock is wrong
                    self._due = 0.0
                raise

    def _note(self) -> None:
        """Writes `node.json`, which only makes the next start quicker."""
        messages = [message_to_proto(r.message) for r in self.unanswered.values()]
        texts = [base64.b64encode(m.SerializeToString()).decode() for m in messages]
        with suppress(OSError):
            write_text(self._file, json.dumps({"node": self.node, "unanswered": texts}))


@contextmanager
def _or_away() -> Iterator[None]:
    """Turns errors of a request into `Away`."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        raise Away(_reason(error.response)) from error
    except (httpx.HTTPError, ValueError) as error:
        raise Away(f"{error!r}") from error


class _Version:
    """Tells the SuperLink Flower's version here; a wrong one is an error of the request."""

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        about = RuntimeVersionMetadata.from_local_component("SuperNode")
        add_headers(context.request, dict(about.as_metadata()))
        return call_next(context)


def _reason(response: httpx.Response) -> str:
    said, code = FlowerError.from_json(response.text), response.status_code
    if code == httpx.codes.UNAUTHORIZED:
        return f"it answers {code}: it has forgotten this node, or this machine's clock is wrong"
    words = [said.message, said.public_details] if said else [response.reason_phrase]
    return f"it answers {code}, " + " ".join(word for word in words if word)


def _recall(file: Path) -> tuple[int, dict[str, Request]]:
    try:
        found = json.loads(file.read_text())
        messages = [
            message_from_proto(message_pb2.Message.FromString(base64.b64decode(text)))
            for text in found["unanswered"]
        ]
        requests = {m.metadata.message_id: Request(m, message_pb2.ObjectTree()) for m in messages}
        return int(found["node"]), requests
    except Exception:  # there is none, or it is damaged: begin anew
        return 0, {}
