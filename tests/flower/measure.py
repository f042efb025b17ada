"""Seconds a round over Flower, beside what Flower itself takes; and bytes really sent.

    python -m tests.flower.measure [--nodes 2 10] [--rounds 5] [--poll 0.05]

One SuperLink, N SuperNodes, the server, and one process that answers for all N workers without
measuring anything: what is left is Flower and hiso's messages. The floor is an app that sends one
empty message to each node and waits for all replies with Flower's own `send_and_receive`. Bytes are
counted by hiso (scalars, messages), by Flower (sent), and by a proxy between the first SuperNode
and the SuperLink: everything that TCP carries, HTTP headers, polling and heartbeats included. All
of a run, hello and last catch-up too, is divided by rounds and workers. `--poll` is Flower's
setting FLWR_SUPEREXEC_TASK_POLL_INTERVAL: every SuperNode looks for work so often at its own port,
which costs processor time; where one machine has many of them, that adds up.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from hiso.flower.envelope import Envelope, receive, send
from hiso.flower.local_socket import socket_path
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Reply
from hiso.ring.wire import hash_question, plan_from_bytes, reply_to_bytes
from hiso.run.identity import settings_identity
from hiso.run.settings import parse_settings, read_toml

from .federation import Deployment, write_toml


def answers(folder: Path, nodes: int) -> None:
    """Answers for all workers, in this process: scalars are zeros, but for the first."""
    settings = parse_settings(read_toml(folder / "settings.toml"))
    identity = settings_identity(settings, settings.make_method(), 2)

    def serve(door: socket.socket, client: int) -> None:
        facts = {"client": client, "weights": 1, "identity": identity.text, "examples": 1}
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
                about = (plan.run, plan.round, client, hash_question(plan), 0)
                data = reply_to_bytes(Reply(*about, scalars, None, 0.5, 1))
                send(connection, Envelope("reply", {}, data))

    for client in range(nodes):
        path = folder / f"w{client}"
        path.mkdir()
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind(socket_path(path))
        door.listen()
        threading.Thread(target=serve, args=(door, client), daemon=True).start()


def busy_seconds(process: psutil.Process) -> float:
    """Processor time of a process and those that it has started."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def measure(nodes: int, rounds: int, poll: float) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="hb"))
    site = Deployment(folder)
    site.env["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"] = str(poll)
    try:
        settings = {"clients": nodes, "sample": nodes, "rounds": rounds, "eval_every": 0}
        write_toml(folder / "settings.toml", settings)
        answers(folder, nodes)
        site.superlink()
        site.wait("SuperLink", lambda: "startup complete" in site.logs())
        proxy = site.proxy
        for index in range(nodes):
            site.supernode(index, counted=index == 0)
        site.wait("nodes", lambda: site.logs(400).count("SuperNode ID") >= nodes, 60 + 6 * nodes)
        time.sleep(5)
        one = psutil.Process(site.processes["supernode0"].pid)
        began, sent, busy = time.monotonic(), proxy.up + proxy.down, busy_seconds(one)
        time.sleep(15)
        idle = time.monotonic() - began
        idle_bytes, idle_busy = proxy.up + proxy.down - sent, busy_seconds(one) - busy
        app, config = Path(__file__).parent / "floor", f"rounds={rounds}"
        site.start("floor", "flwr", "run", app, "--run-config", config, "--stream")
        site.wait("floor", lambda: site.processes["floor"].poll() == 0, 60 + 60 * nodes)
        lines = (folder / "floor.out").read_text().splitlines()
        floor = [float(line.split()[-1]) for line in lines if "FLOOR" in line]
        if len(floor) < rounds:
            raise AssertionError("the floor's app has failed")
        before = (proxy.up, proxy.down)
        site.serve("run")
        summary = site.summary("run", 120 + 60 * nodes * rounds)
        with Ledger.open(folder / "run" / "ledger.sqlite") as ledger:
            seconds = [row.seconds["round"] for row in ledger.rounds()]
        return {
            "nodes": nodes,
            "poll_s": poll,
            "floor_s": statistics.median(floor),
            "round_s": statistics.median(seconds),
            "idle_bytes_per_s": idle_bytes / idle,
            "idle_processor": idle_busy / idle,
            **summary["per_round_and_worker"],
            "tcp_bytes_up": (proxy.up - before[0]) / rounds,
            "tcp_bytes_down": (proxy.down - before[1]) / rounds,
            "server_mib": summary["peak_memory_bytes"] / 2**20,
        }
    except BaseException:
        print(site.logs(5))
        raise
    finally:
        site.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # no process is left
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--poll", type=float, default=0.05)
    arguments = parser.parse_args()
    for count in arguments.nodes:
        print(json.dumps(measure(count, arguments.rounds, arguments.poll)), flush=True)
