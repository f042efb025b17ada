"""Times rounds, their parts, their bare forward passes, and the usual implementation.

HiSo, P = 5, 2 of 6 clients, joint batches of 16. The bare passes are P + 1 calls of the loss on
the batches of the round that is measured next, at fixed weights and without any other work. Every
competitor runs once in each repeat.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiso.core.identity import Identity
from hiso.core.method.registry import HiSo
from hiso.core.replica.replica import DTYPES, Replica
from hiso.engines.simulation import Shard, Simulation
from hiso.lab.bench.timing import interleaved
from hiso.lab.bench.usual import usual_round
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.run.observer import Observer
from hiso.run.settings import parse_settings
from hiso.run.workload.text import Words, load_words
from hiso.workloads.text.objective import Objective

PARTS: tuple[str, ...] = ("forward", "directions", "step", "data", "rest")
"""The parts of the time of a round; `rest` is the time not in the other parts."""

_CLIENTS, _SAMPLE, _DIRECTIONS = 6, 2, 5
_MU = {"float32": 1e-3, "bfloat16": 5e-3}


def measure_rounds(
    given: Mapping[str, Any], repeats: int, observer: Observer, *, against_usual: bool
) -> dict[str, Any]:
    """Times rounds whose forward passes are in float32 and in bfloat16.

    Args:
        given: Settings for model, task, data and batch size.
        repeats: Number of repeats, after one to warm up.
        observer: Receives the progress.
        against_usual: Whether the usual implementation runs too. It needs the memory of two models
            for each client, in float32 and again in bfloat16.

    Returns:
        round_efficiency: Time of the bare passes divided by the time of the round, by dtype.
        rounds_over_usual: With `against_usual`, the time of the usual implementation's round
            divided by hiso's: both in float32; hiso with bfloat16 forward passes against the usual
            implementation in float32, where it trains; and both in bfloat16, where the usual
            implementation does not train.
        seconds: Median time of each competitor.
        split: By dtype, the seconds of each part of the round of median duration.
    """
    method = HiSo()
    settings = parse_settings({"clients": _CLIENTS, "sample": _SAMPLE, **given})
    workload = load_words(settings, method, observer, None)
    model: Any = workload.lm.model
    work: dict[str, Callable[[], object]] = {}
    hiso: dict[str, _Rounds] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for dtype, mu in _MU.items():
            rounds = RoundSettings(
                clients=_CLIENTS, sample=_SAMPLE, steps=1, directions=_DIRECTIONS, mu=mu
            )
            identity = replace(workload.identity, dtype=dtype)
            ledger = Ledger.create(folder / dtype, identity, {})
            stack.enter_context(ledger)
            hiso[dtype] = _Rounds(workload, rounds, ledger)
            work[f"bare {dtype}"] = hiso[dtype].bare
            work[f"hiso {dtype}"] = hiso[dtype].round
            if against_usual:
                module = copy.deepcopy(model).to(DTYPES[dtype])
                work[f"usual {dtype}"] = usual_round(workload, module, method, rounds)
        with observer.phase("timing rounds", len(work) * (repeats + 1)) as advance:
            times = interleaved(work, repeats, advance)
    result: dict[str, Any] = {
        "round_efficiency": {d: times.ratio(f"bare {d}", f"hiso {d}") for d in hiso},
        "seconds": {name: times.seconds(name) for name in work},
        "split": {dtype: rounds.median_split() for dtype, rounds in hiso.items()},
    }
    if against_usual:
        result["rounds_over_usual"] = {
            "float32": times.ratio("usual float32", "hiso float32"),
            "bfloat16": times.ratio("usual float32", "hiso bfloat16"),
            "bfloat16_both": times.ratio("usual bfloat16", "hiso bfloat16"),
        }
    return result


class _Clock:
    """Seconds spent in each part of a round so far."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - started


class _TimedReplica(Replica):
    """Measures the time of writing perturbed weights and of folding records."""

    def __init__(self, clock: _Clock, module: Any, identity: Identity) -> None:
        self._clock = clock
        super().__init__(module, identity)

    def write(self, *args: Any, **kwargs: Any) -> None:
        with self._clock.part("directions"):
            super().write(*args, **kwargs)

    def replay(self, *args: Any, **kwargs: Any) -> None:
        with self._clock.part("step"):
            super().replay(*args, **kwargs)


class _TimedShard:
    """Measures the time of drawing batches."""

    def __init__(self, clock: _Clock, shard: Shard) -> None:
        self._clock, self._shard = clock, shard

    @property
    def examples(self) -> int:
        return self._shard.examples

    def batch(self, round: int, step: int) -> Any:
        with self._clock.part("data"):
            return self._shard.batch(round, step)


class _Rounds:
    """A federation on a copy of the model, whose rounds and bare passes can be timed."""

    def __init__(self, workload: Words, rounds: RoundSettings, ledger: Ledger) -> None:
        self._clock = _Clock()
        self._splits: list[dict[str, float]] = []
        self._shards = [_TimedShard(self._clock, shard) for shard in workload.shards]
        lm = replace(workload.lm, model=copy.deepcopy(workload.lm.model))
        replica = _TimedReplica(self._clock, lm.model, ledger.identity)
        self._objective = Objective(lm, workload.task, rows=replica.rows)
        self._server = Server(ledger, rounds)
        self._simulation = Simulation(self._server, replica, self._shards, self._objective)

    def bare(self) -> None:
        """The forward passes of the next round."""
        batches = [self._shards[plan.client].batch(plan.round, 0) for plan in self._server.ask()]
        for _ in range(_DIRECTIONS + 1):
            self._objective(batches)

    def round(self) -> None:
        """One round."""
        self._clock.spent = spent = dict.fromkeys(PARTS, 0.0)
        forward, started = self._objective.seconds, time.perf_counter()
        self._simulation.round()
        total = time.perf_counter() - started
        spent["forward"] = self._objective.seconds - forward
        spent["rest"] = total - sum(spent.values())
        self._splits.append(spent)

    def median_split(self) -> dict[str, float]:
        """The parts of the round of median duration; the first round is ignored."""
        ordered = sorted(self._splits[1:], key=lambda split: sum(split.values()))
        return ordered[(len(ordered) - 1) // 2]
