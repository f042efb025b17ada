"""Seconds a round over Flower, beside what Flower itself takes; and bytes really sent.

    python -m tests.flower.measure [--nodes 2 10] [--rounds 5]

One SuperLink, N SuperNodes, the server, and one process that answers for all N workers without
measuring anything: what is left is Flower and hiso's messages. The floor is an app that sends one
empty message to each node and waits for all replies with Flower's own `send_and_receive`. Bytes are
counted by a proxy between the first SuperNode and the SuperLink: everything that TCP carries,
polling and heartbeats included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from hiso.federation.ledger import Ledger
from hiso.federation.protocol import Reply
from hiso.federation.wire import plan_from_bytes, reply_to_bytes
from hiso.flower.dial import socket_path
from hiso.flower.envelope import Envelope, receive, send
from hiso.run.identity import settings_identity
from hiso.run.settings import parse_settings, read_toml

from .federation import Deployment, free_port, write_toml


def answers(folder: Path, nodes: int) -> None:
    """Answers for all workers, in this process: scalars are zeros, but for the first."""
    settings = parse_settings(read_toml(folder / "settings.toml"))
    identity = settings_identity(settings, settings.make_method())

    def serve(door: socket.socket, client: int) -> None:
        facts = {"client": client, "weights": 1, "identity": identity, "examples": 1}
        facts |= {"run": None, "position": 0, "chain": ""}
        while True:
            connection, _ = door.accept()
            with connection:
                request = receive(connection)
                if request.kind == "hello":
                    send(connection, Envelope("hello", facts))
                    continue
                plan = plan_from_bytes(request.body)
                facts |= {"run": plan.run, "position": plan.round, "chain": plan.chain.hex()}
                if request.kind == "fold":
                    folded = {"position": plan.round, "digest": "0"}
                    send(connection, Envelope("folded", folded))
                    continue
                scalars = np.zeros((plan.steps, plan.directions), np.float32)
                scalars[0, 0] = 1
                about = (plan.run, plan.round, plan.attempt, client, plan.chain, 0)
                data = reply_to_bytes(Reply(*about, scalars, None, 0.5, 1))
                send(connection, Envelope("reply", {}, data))

    for client in range(nodes):
        path = folder / f"w{client}"
        path.mkdir()
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(socket_path(path))
        door.listen()
        threading.Thread(target=serve, args=(door, client), daemon=True).start()


class Proxy:
    """Passes TCP on to a port, and counts."""

    def __init__(self, port: int) -> None:
        self.port, self.up, self.down, self._to = free_port(), 0, 0, port
        door = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(door,), daemon=True).start()

    def _accept(self, door: socket.socket) -> None:
        while True:
            near, _ = door.accept()
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:  # the SuperLink is gone
                near.close()
                continue
            threading.Thread(target=self._pass, args=(near, far, "up"), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                setattr(self, way, getattr(self, way) + len(data))
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def measure(nodes: int, rounds: int) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="hb"))
    site = Deployment(folder)
    try:
        settings = {"clients": nodes, "sample": nodes, "rounds": rounds, "eval_every": 0}
        write_toml(folder / "settings.toml", settings)
        answers(folder, nodes)
        site.superlink()
        site.wait("SuperLink", lambda: "startup complete" in site.logs())
        proxy = Proxy(site.port)
        for index in range(nodes):
            site.supernode(index, port=proxy.port if index == 0 else site.port)
        site.wait("nodes", lambda: site.logs(400).count("SuperNode ID") >= nodes, 60 + 6 * nodes)
        began, before = time.monotonic(), (proxy.up, proxy.down)
        time.sleep(15)
        idle = time.monotonic() - began
        idle_bytes = (proxy.up + proxy.down - sum(before)) / idle
        site.start("floor", "flwr", "run", Path(__file__).parent / "floor", "--stream")
        site.processes["floor"].wait(60 + 60 * nodes)
        lines = (folder / "floor.out").read_text().splitlines()
        floor = [float(line.split()[-1]) for line in lines if "FLOOR" in line]
        before = (proxy.up, proxy.down)
        site.serve("run")
        site.wait("summary", (folder / "run" / "summary.json").is_file, 120 + 60 * nodes * rounds)
        summary = json.loads((folder / "run" / "summary.json").read_text())
        with Ledger.open(folder / "run" / "ledger.sqlite") as ledger:
            seconds = [row.seconds["round"] for row in ledger.rounds()]
            up, down, pairs = ledger.message_bytes()
        return {
            "nodes": nodes,
            "floor_s": statistics.median(floor),
            "round_s": statistics.median(seconds),
            "idle_bytes_per_s": idle_bytes,
            "paper_bytes_up": summary["bytes_up"] / nodes / rounds,
            "paper_bytes_down": summary["bytes_down"] / nodes / rounds,
            "message_bytes_up": up / pairs,
            "message_bytes_down": down / pairs,
            "sent_bytes_up": (proxy.up - before[0]) / (rounds + 2),  # hello and end: a message each
            "sent_bytes_down": (proxy.down - before[1]) / (rounds + 2),
            "server_mib": summary["peak_memory_bytes"] / 2**20,
        }
    except BaseException:
        print(site.logs())
        raise
    finally:
        site.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for count in arguments.nodes:
        print(json.dumps(measure(count, arguments.rounds)), flush=True)
