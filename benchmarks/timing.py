"""Interleaved timing: every competitor once per repeat, medians over repeats."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table


def interleaved(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def report(title: str, figures: Mapping[str, float]) -> None:
    """A table, or with --json one line of JSON."""
    if "--json" in sys.argv:
        print(json.dumps({"benchmark": title, **figures}))
        return
    table = Table(title=f"{title} ({torch.get_num_threads()} threads)", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)
