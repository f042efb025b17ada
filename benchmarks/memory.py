"""Peak memory of a run with 6 and with 600 clients: one replica serves them all.

    python benchmarks/memory.py [--json]

Each number of clients runs in a process of its own (SmolLM2-135M, HiSo, float32, 3 rounds).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from timing import report


def peak(clients: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hiso", "run", "--out", f"{folder}/run", "--json"]
        command += ["--clients", str(clients), "--rounds", "3", "--batch-size", "8"]
        command += ["--test-examples", "64", "--eval-every", "0"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)["peak_memory_bytes"]


def main() -> None:
    few, many = peak(6), peak(600)
    report(
        "memory",
        {
            "6 clients, GiB": few / 2**30,
            "600 clients, GiB": many / 2**30,
            "600 clients over 6": many / few,
        },
    )


if __name__ == "__main__":
    main()
