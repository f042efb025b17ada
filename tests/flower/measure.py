"""Seconds a round over Flower without any forward passes, and bytes really sent.

    python -m tests.flower.measure [--sites 2 10 50] [--each 1] [--sample K] [--rounds 10] [--idle]

One SuperLink, the server, and a process that answers for all N sites without measuring anything
(`stub.py`), with `--each` clients at each site, of which `--sample` in all are asked in a round (by
default all): what is left is Flower and hiso's messages. Bytes are counted by hiso (scalars,
messages), by Flower (sent), and by a proxy between the first site and the SuperLink: everything
that TCP carries, HTTP headers, polling and heartbeats included. All of a run, hello and last
catch-up too, is divided by rounds and sites. Memory is that of a process whose only work is one
site's connection.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from hiso.ring.ledger.ledger import Ledger
from hiso.run.identity import settings_identity
from hiso.run.settings import parse_settings, read_toml

from .federation import ROOT, Deployment, Proxy, write_toml
from .stub import Stub

_RARE, _IDLE = 70.0, 30.0
"""Seconds until an idle site looks for messages rarely; and over which it is measured."""


def answer_for(first: int, stop: int, each: int, address: str, folder: Path) -> None:
    """Answers for sites [first, stop), in this process, until it is killed."""
    settings = parse_settings(read_toml(folder / "settings.toml"))
    identity = settings_identity(settings, settings.make_method(), 2)
    for site in range(first, stop):
        Stub(address, folder / f"w{site}", range(site * each, (site + 1) * each), identity)
    signal.pause()


def busy_seconds(process: psutil.Process) -> float:
    """Processor time of a process."""
    return sum(process.cpu_times()[:2])


def rest(one: psutil.Process, proxy: Proxy) -> dict[str, float]:
    """What a site without work takes."""
    time.sleep(_RARE)
    began, sent, busy = time.monotonic(), proxy.up + proxy.down, busy_seconds(one)
    time.sleep(_IDLE)
    passed = time.monotonic() - began
    return {
        "idle_bytes_per_s": (proxy.up + proxy.down - sent) / passed,
        "idle_processor": (busy_seconds(one) - busy) / passed,
    }


def measure(
    sites: int, each: int, sample: int | None, rounds: int, *, idle: bool
) -> dict[str, float]:
    folder = Path(tempfile.mkdtemp(prefix="hb"))
    site = Deployment(folder)
    module, proxy = "tests.flower.measure", site.proxy
    try:
        clients = sites * each
        settings = {"method": "hiso", "clients": clients, "sample": sample or clients}
        settings |= {"rounds": rounds}
        write_toml(folder / "settings.toml", settings)
        site.superlink()
        counted, direct = site.address(counted=True), site.address()
        site.start(
            "worker0", "python", "-m", module, "--answer", 0, 1, each, counted, folder, folder=ROOT
        )
        site.start(
            "worker",
            "python",
            "-m",
            module,
            "--answer",
            1,
            sites,
            each,
            direct,
            folder,
            folder=ROOT,
        )
        site.wait(
            "sites", lambda: (folder / "superlink.out").read_text().count("Activated") >= sites, 600
        )
        one = psutil.Process(site.processes["worker0"].pid)
        resting = rest(one, proxy) if idle else {}
        before = (proxy.up, proxy.down)
        link = psutil.Process(site.processes["superlink"].pid)
        rest_of_them = psutil.Process(site.processes["worker"].pid)
        used = busy_seconds(link), busy_seconds(rest_of_them)
        site.serve("run")
        summary = site.summary("run", 300 + 30 * rounds)
        with Ledger.open(folder / "run" / "ledger.sqlite") as ledger:
            seconds = [row.seconds["round"] for row in ledger.rounds()]
        used = busy_seconds(link) - used[0], busy_seconds(rest_of_them) - used[1]
        return {
            "sites": sites,
            "clients": clients,
            "sample": sample or clients,
            "round_s": statistics.median(seconds),
            "longest_round_s": max(seconds),
            "superlink_processor_s": used[0] / rounds,
            "site_processor_s": used[1] / rounds / max(sites - 1, 1),
            **resting,
            "site_mib": one.memory_info().rss / 2**20,
            **summary["per_round_and_worker"],
            "tcp_bytes_up": (proxy.up - before[0]) / rounds,
            "tcp_bytes_down": (proxy.down - before[1]) / rounds,
            "server_mib": summary["peak_memory_bytes"] / 2**20,
            "superlink_mib": link.memory_info().rss / 2**20,
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
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--idle", action="store_true", help="also measure sites without work")
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--answer", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.answer:
        first, stop, each, address, folder = arguments.answer
        answer_for(int(first), int(stop), int(each), address, Path(folder))
    for count in arguments.sites:
        figures = measure(
            count, arguments.each, arguments.sample, arguments.rounds, idle=arguments.idle
        )
        print(json.dumps(figures), flush=True)
