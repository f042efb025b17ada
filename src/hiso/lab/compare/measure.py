"""The accuracy of a run against rounds, bytes and forward passes."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

from hiso.ring.ledger.runfile import Evaluation
from hiso.run.folder import RunFolder
from hiso.run.results import Round

Goal = Literal["best metric", "last loss"]


@dataclass(frozen=True)
class Curve:
    """A run's evaluations on the tuning split.

    Attributes:
        positions: Number of finished rounds at each evaluation.
        accuracy: The metric at each evaluation; higher is better.
        bytes: Bytes up and down until then, over all clients.
        passes: Forward passes of a batch until then, over all clients.
        loss: The loss at each evaluation.
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

    def first(self, target: float, goal: Goal = "best metric") -> int | None:
        """Index of the first evaluation that reaches `target`.

        A loss must also be reached at the next evaluation, if there is one.
        """
        if goal == "best metric":
            return next((i for i, a in enumerate(self.accuracy) if a >= target), None)
        pairs = enumerate(zip(self.loss, [*self.loss[1:], -math.inf], strict=True))
        return next((i for i, pair in pairs if max(pair) <= target), None)

    def at(self, costs: list[int], budget: int) -> float:
        """Accuracy of the last evaluation that cost no more than `budget`."""
        return self.accuracy[bisect.bisect_right(costs, budget) - 1]


def read_curve(folder: Path, metric: str) -> Curve:
    """The curve of a run that has ended."""
    return curve_of(*RunFolder(folder).read_metrics(), metric)


def curve_of(rounds: Sequence[Round], evaluations: Sequence[Evaluation], metric: str) -> Curve:
    """The curve from rounds and evaluations; rounds with unknown passes count as zero passes."""
    spent = [0, *accumulate(done.bytes_up + done.bytes_down for done in rounds)]
    passes = [0, *accumulate(done.passes or 0 for done in rounds)]
    dev = [e for e in evaluations if e.split == "dev"]
    positions = [e.position for e in dev]
    return Curve(
        positions,
        [e.metrics[metric] for e in dev],
        [spent[position] for position in positions],
        [passes[position] for position in positions],
        [e.metrics["loss"] for e in dev],
    )
