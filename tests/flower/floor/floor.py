"""What Flower itself takes: an empty message to each node, and all replies."""

import time

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()


@client.query()
def echo(message, context):
    return Message(RecordDict({"x": ConfigRecord({"x": b""})}), reply_to=message)


@server.main()
def main(grid, context):
    for _ in range(context.run_config["rounds"]):
        began = time.monotonic()
        content = RecordDict({"x": ConfigRecord({"x": b""})})
        grid.send_and_receive(
            [
                Message(content, dst_node_id=node, message_type="query")
                for node in grid.get_node_ids()
            ],
            timeout=600,
        )
        print("FLOOR", time.monotonic() - began, flush=True)
