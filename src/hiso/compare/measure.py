"""What a run shows: its accuracy over rounds, bytes and forward passes."""

from __future__ import annotations

import bisect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hiso.run.folder import RunFolder


@dataclass(frozen=True)
class Curve:
    """A run's evaluations on the tuning split.

    Attributes:
        positions: Rounds done at each evaluation.
        accuracy: The metric there; the higher the better.
        bytes: Bytes up and down by then, over all clients.
        passes: Forward passes of a batch by then, over all clients.
        loss: The loss there.
    """

    positions: list[int]
    accuracy: list[float]
    bytes: list[int]
    passes: list[int]
    loss: list[float]

    @property
    def best(self) -> float:
        """The best accuracy."""
        return max(self.accuracy)

    def first(self, target: float) -> int | None:
        """Index of the first evaluation that reaches `target`."""
        return next((i for i, a in enumerate(self.accuracy) if a >= target), None)

    def at(self, costs: list[int], budget: int) -> float:
        """Accuracy of the last evaluation that cost no more than `budget`."""
        return self.accuracy[bisect.bisect_right(costs, budget) - 1]


def read_curve(folder: Path, metric: str) -> Curve:
    """The curve of a run that has ended."""
    lines = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    return curve_of(lines, metric)


def curve_of(lines: Iterable[Mapping[str, Any]], metric: str) -> Curve:
    """The curve that the lines of a metrics.jsonl tell."""
    lines = list(lines)
    rounds = sorted((x for x in lines if x["kind"] == "round"), key=lambda x: x["round"])
    spent = [0, *accumulate(x["bytes_up"] + x["bytes_down"] for x in rounds)]
    passes = [0, *accumulate(x["passes"] for x in rounds)]
    dev = [x for x in lines if x["kind"] == "evaluation" and x["split"] == "dev"]
    positions = [x["position"] for x in dev]
    return Curve(
        positions,
        [x[metric] for x in dev],
        [spent[position] for position in positions],
        [passes[position] for position in positions],
        [x["loss"] for x in dev],
    )
