"""Times and memory with a long ledger.

    python -m tests.ring.measure [--records 10000 1000000] [--clients 2]

Each round has replies of some clients, P = 5. Each action runs in a process of its own, whose peak
memory is told, imports included: open the ledger, verify it, `hiso inspect`, restart a server and
ask for the next round, read what a client at position 0 lacks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hiso.core.method.registry import ZoSgd
from hiso.core.record import Record
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Reply
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.inspect import inspect_run

from .standin import new_ledger

ACTIONS = ("open", "verify", "inspect", "restart", "catch_up")
P = 5


def build(path: Path, records: int, clients: int) -> float:
    """Commits the records; returns the mean seconds of a commit."""
    began = time.monotonic()
    question = bytes(32)
    with new_ledger(path, ZoSgd()) as ledger:
        ledger._db.execute("PRAGMA synchronous=OFF")  # the disk's own time is not measured
        ledger.change({"rounds": records + 1, "clients": clients, "sample": clients})
        for round in range(records):
            scalars = np.full((1, P), round / records, np.float32)
            zeros = np.zeros(P, np.uint16)
            directions = np.arange(P, dtype=np.uint16)
            record = Record(round, zeros, zeros.astype(np.uint32), directions, scalars[0])
            replies = [
                Reply(ledger.run, round, client, question, round, scalars, scalars, 0.5, 8)
                for client in range(clients)
            ]
            ledger.commit(
                record, replies, digest=round, set_aside={}, loss=0.5, bytes_up=4 * P * clients,
                bytes_down=4 * P * clients, seconds={"round": 0.1},
            )  # fmt: skip
    return (time.monotonic() - began) / records


def act(what: str, folder: Path, clients: int) -> dict[str, float]:
    """Seconds and peak memory of one action."""
    before, began = peak(), time.monotonic()
    path = folder / "ledger.sqlite"
    if what == "inspect":
        inspect_run(folder, last=10)
    else:
        with Ledger.open(path) as ledger:
            if what == "verify":
                ledger.verify()
            elif what == "restart":
                settings = RoundSettings(
                    clients=clients, sample=clients, steps=1, directions=P, mu=1e-3, clip=3.0
                )
                Server(ledger, settings).ask()
            elif what == "catch_up":
                ledger.records(0)
    return {"seconds": time.monotonic() - began, "mib_before": before, "mib": peak()}


def peak() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--act", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.act:
        what, folder = arguments.act
        print(json.dumps(act(what, Path(folder), arguments.clients)))
        sys.exit()
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.sqlite"
            figures = {"records": records, "commit_s": build(path, records, arguments.clients)}
            print(json.dumps(figures | {"bytes": path.stat().st_size}), flush=True)
            for what in ACTIONS:
                command = [sys.executable, "-m", "tests.ring.measure", "--act", what, folder]
                command += ["--clients", str(arguments.clients)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                print(f"{what}: {done.stdout}", end="", flush=True)
