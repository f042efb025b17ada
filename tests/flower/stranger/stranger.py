"""An app that is not hiso's: its client part would write a file at every node."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

TARGET = os.environ.get("STRANGER_TARGET", "")
client = ClientApp()
server = ServerApp()


@client.query()
@client.train()
def write(message, context):
    Path(TARGET).write_text("executed")
    return Message(message.content, reply_to=message)


class Evil:
    def __reduce__(self):
        return (os.system, (f"touch {TARGET}",))


def contents():
    yield RecordDict()
    yield RecordDict({"hiso": ConfigRecord({"envelope": pickle.dumps(Evil())})})
    yield RecordDict({"hiso": ConfigRecord({"code": f"import os; open({TARGET!r}, 'w')"})})
    yield RecordDict({"hiso": ArrayRecord([np.ones(3)])})
    yield RecordDict({"a": ConfigRecord({"x": 1}), "b": ConfigRecord({"y": 2})})


@server.main()
def main(grid, context):
    waiting = set()
    for content in list(contents())[: context.run_config["contents"]]:
        for kind in ("query", "train"):
            for node in grid.get_node_ids():
                message = Message(content, dst_node_id=node, message_type=kind)
                waiting |= set(grid.push_messages([message]))
    print("SENT", len(waiting), flush=True)
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            print("ANSWER", "error" if reply.has_error() else "content", flush=True)
        time.sleep(0.1)
    print("ALL ANSWERED", flush=True)
