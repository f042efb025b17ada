"""The client application, for Flower's simulation alone: the worker runs inside the Ray actor.

A site does not run it: `hiso worker` speaks with the SuperLink itself.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from hiso.errors import ProtocolError
from hiso.flower.envelope import Envelope, pack, unpack

NO_SITE = "SuperNodeRefused"
"""Kind of error: a SuperNode cannot be a site."""

app = ClientApp()


@app.query()
def answer(message: Message, context: Context) -> Message:
    """Answers for the client whose number the simulation gives to this node."""
    node = context.node_config
    try:
        request = unpack(message.content)
        if "num-partitions" in node:
            from hiso.flower import actor

            client = int(node["partition-id"])
            answer = actor.answer(request, client, str(context.run_config["settings"]))
        else:
            reason = "a SuperNode cannot take part in hiso's runs: start `hiso worker` instead"
            answer = Envelope.of_error(NO_SITE, reason)
    except ProtocolError as error:
        answer = Envelope.of_exception(error)
    return Message(pack(answer), reply_to=message)
