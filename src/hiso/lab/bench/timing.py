"""Interleaved timing: every competitor runs once per repeat; medians of ratios per repeat."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from hiso.run.observer import Advance


class Times:
    """Seconds that each competitor took in each repeat."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self._seconds = dict(seconds)

    def seconds(self, name: str) -> float:
        """Median over repeats."""
        return statistics.median(self._seconds[name])

    def ratio(self, over: str, under: str) -> float:
        """Median of the ratios within each repeat; effects that slow down both cancel."""
        pairs = zip(self._seconds[over], self._seconds[under], strict=True)
        return statistics.median(a / b for a, b in pairs)


def interleaved(
    work: Mapping[str, Callable[[], object]], repeats: int, advance: Advance = lambda _: None
) -> Times:
    """Runs each competitor once to warm up, then once in every repeat.

    Args:
        work: The functions to time, by name.
        repeats: Number of repeats.
        advance: Called after each function call.
    """
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if repeat:
                times[name].append(time.perf_counter() - started)
            advance(1)
    return Times(times)


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch and the kernels on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
