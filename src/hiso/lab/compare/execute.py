"""Runs trials side by side, each in its own process; finished trials are not repeated."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import psutil

from hiso.errors import Diverged
from hiso.lab.baselines.baseline_settings import BASELINES
from hiso.lab.compare.trials import Trial
from hiso.run.folder import RunFolder, write_text
from hiso.run.results import Summary, decode_summary

FAILED = "failed.json"
_POLL = 0.5
_SHARE = 0.8
"""Fraction of the free memory that all runs together may use."""


class Display(Protocol):
    """Receives the progress of a comparison."""

    def begin(self, what: str, trials: Sequence[Trial], done: int) -> None:
        """A stage begins; `done` of its runs are already finished."""
        ...

    def progress(self, running: dict[Trial, int]) -> None:
        """The number of rounds that each run has finished so far."""
        ...

    def finished(self, trial: Trial, result: Summary | Failure) -> None:
        """A run has ended."""
        ...


@dataclass(frozen=True)
class Failure:
    """A run whose loss exploded: failed.json.

    Attributes:
        failed: A description of the failure.
        seconds: Wall time until the failure.
    """

    failed: str
    seconds: float


def run_all(
    what: str, trials: Sequence[Trial], root: Path, threads: int, jobs: int | None, display: Display
) -> dict[str, Summary | Failure]:
    """Runs all unfinished trials; returns the result of each, by folder.

    Without `jobs`, one run goes first. Its memory determines how many of the others run side by
    side; the number of cores is also a limit.

    Raises:
        HisoError: A run failed for another reason than that its loss exploded. Start again to
            resume.
    """
    unique = {trial.folder: trial for trial in trials}
    results = {name: found for name in unique if (found := read_result(root / name)) is not None}
    waiting = [trial for name, trial in unique.items() if name not in results]
    display.begin(what, list(unique.values()), len(results))
    if jobs is None and waiting:
        first = waiting.pop(0)
        results |= _batch([first], root, threads, 1, display)
        done = results[first.folder]
        peak = done.peak_memory_bytes if isinstance(done, Summary) else 2**30
        room = int(psutil.virtual_memory().available * _SHARE / peak)
        jobs = max(1, min((os.cpu_count() or 1) // threads, room))
    if waiting:
        results |= _batch(waiting, root, threads, jobs or 1, display)
    return results


def read_result(folder: Path) -> Summary | Failure | None:
    """The result of a run; None if it has not ended."""
    if (failed := folder / FAILED).is_file():
        return Failure(**json.loads(failed.read_text()))
    return RunFolder(folder).read_summary()


def _batch(
    trials: Sequence[Trial], root: Path, threads: int, jobs: int, display: Display
) -> dict[str, Summary | Failure]:
    results: dict[str, Summary | Failure] = {}
    with _threads(threads), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures: dict[Future[Summary | Failure], Trial] = {
            pool.submit(run_trial, trial, root / trial.folder, threads): trial for trial in trials
        }
        try:
            while futures:
                done, _ = wait(futures, _POLL, FIRST_COMPLETED)
                for future in done:
                    trial = futures.pop(future)
                    results[trial.folder] = future.result()
                    display.finished(trial, results[trial.folder])
                running = [trial for future, trial in futures.items() if future.running()]
                display.progress({t: RunFolder(root / t.folder).count_rounds() for t in running})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in psutil.Process().children():
                process.terminate()
            raise
    return results


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sets the number of threads in the environment of new processes, before libraries load."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def run_trial(trial: Trial, folder: Path, threads: int) -> Summary | Failure:
    """Starts or resumes one run in this process."""
    import torch

    torch.set_num_threads(threads)
    began = time.monotonic()
    try:
        if trial.settings.get("method") in BASELINES:
            from hiso.lab.baselines.baseline_run import train

            return decode_summary(train(trial.settings, folder))
        return _in_stages(trial, folder)
    except Diverged as error:
        failure = Failure(str(error), time.monotonic() - began)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / FAILED, json.dumps(asdict(failure)) + "\n")
        return failure


def _in_stages(trial: Trial, folder: Path) -> Summary:
    """Runs a trial whose settings change during the run, one stage after the other."""
    from hiso.ring.ledger.ledger import Ledger
    from hiso.run.launch import launch

    changes = sorted(trial.changes, key=lambda change: change.round)
    ends = [*(change.round for change in changes), trial.rounds]
    if RunFolder(folder).has_run():
        with Ledger.open(RunFolder(folder).ledger) as ledger:
            position = ledger.position
        summary = launch({}, folder)  # to the end of the present stage
    else:
        position = 0
        summary = launch({**trial.settings, "rounds": ends[0]}, folder)
    for change, end in zip(changes, ends[1:], strict=True):
        if position <= change.round:
            summary = launch({}, folder, changes={**change.set, "rounds": end})
    return summary
