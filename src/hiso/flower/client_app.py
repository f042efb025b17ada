"""The client application: carries a message to the worker on this machine, and the answer back.

Flower starts a process for every message, so this process loads neither model nor data.
"""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hiso.errors import ProtocolError
from hiso.flower.envelope import MISSING, Envelope
from hiso.flower.local_socket import ask

_SPARE = 2.0
"""Seconds of a message's time to live that are reserved for the answer."""

app = ClientApp()


@app.query()
def relay(message: Message, context: Context) -> Message:
    """Passes the request to the worker named in the SuperNode's configuration.

    In Flower's simulation, a node's configuration has only the node's number; there the worker
    runs in this process, which Ray keeps alive.
    """
    left = message.metadata.created_at + message.metadata.ttl - time.time() - _SPARE
    node = context.node_config
    try:
        request = unpack(message)
        if "worker" in node:
            answer = ask(Path(str(node["worker"])), request, left)
        elif "num-partitions" in node:
            from hiso.flower import actor

            client = int(node["partition-id"])
            answer = actor.answer(request, client, str(context.run_config["settings"]))
        else:
            reason = "start the SuperNode with --node-config 'worker=\"FOLDER\"'"
            answer = Envelope.of_error(MISSING, f"no worker is named here: {reason}")
    except ProtocolError as error:
        answer = Envelope.of_exception(error)
    return Message(pack(answer), reply_to=message)


def pack(envelope: Envelope) -> RecordDict:
    """An envelope as the content of a Flower message."""
    return RecordDict({"hiso": ConfigRecord({"envelope": envelope.to_bytes()})})


def unpack(message: Message) -> Envelope:
    """The envelope in a Flower message.

    Raises:
        ProtocolError: There is no envelope, or it is malformed.
    """
    try:
        data = message.content["hiso"]["envelope"]
    except (KeyError, ValueError, TypeError) as error:
        raise ProtocolError(f"a message without an envelope: {error!r}") from error
    if not isinstance(data, bytes):
        raise ProtocolError(f"an envelope is bytes, not {type(data).__name__}")
    return Envelope.from_bytes(data)
