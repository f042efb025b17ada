"""The targets of hiso on any machine, and whether they were met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hiso.lab.bench.memory import MANY_CLIENTS, MODES

Sign = Literal[">=", "<="]


@dataclass(frozen=True)
class Target:
    """A bound for one figure of the report.

    Attributes:
        figure: The figure's keys in the report, joined by dots.
        sign: The side of the bound on which the figure must lie.
        bound: The bound.
        slack: Fraction of the bound by which a figure may miss it.
        features: The CPU features for which this target applies, by torch's names.
    """

    figure: str
    sign: Sign
    bound: float
    slack: float = 0.0
    features: str | None = None

    def __str__(self) -> str:
        slack = f" ± {self.slack:.0%}" if self.slack else ""
        return f"{self.sign} {self.bound:g}{slack}"

    def met(self, value: float) -> bool:
        """Whether the value meets the bound."""
        if self.sign == ">=":
            return value >= self.bound * (1 - self.slack)
        return value <= self.bound * (1 + self.slack)


MANY_ROUNDS = 1000
"""Number of rounds in the longest replay."""

_PER_ROUND = 1024
_SPEED = "replay.weights_directions_per_second_per_core"
_PADDING = 0.01
"""Tolerance for padding and activations, which the memory by design does not include."""

TARGETS = (
    Target("round_efficiency.float32", ">=", 0.85),
    Target("round_efficiency.bfloat16", ">=", 0.85),
    Target("rounds_over_usual.float32", ">=", 6.0),
    Target("rounds_over_usual.bfloat16", ">=", 20.0),
    Target(_SPEED, ">=", 3e9, features="AVX512"),
    Target(_SPEED, ">=", 1e9, features="AVX2"),
    Target("replay.over_torch", ">=", 8.0),
    Target("replay.linearity", "<=", 1.0, slack=0.1),
    Target("replay.growth_bytes", "<=", MANY_ROUNDS * _PER_ROUND),
    *(
        Target(
            f"memory.bytes_per_weight.{mode.memory}.{mode.method}.{mode.dtype}",
            "<=",
            mode.expected(largest=1.0),
            slack=_PADDING,
        )
        for mode in MODES
    ),
    Target(
        "memory.many_clients.bytes_per_weight",
        "<=",
        MANY_CLIENTS.expected(largest=1.0),
        slack=_PADDING,
    ),
    Target("perturb.over_copy", ">=", 0.6),
    Target("perturb_cuda.over_copy", ">=", 0.8),
)


def judge(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each target for which the report has a figure: figure, value, target, met.

    `met` is None for a figure that could not be measured.
    """
    return [
        {
            "figure": target.figure,
            "value": value,
            "target": str(target),
            "met": None if value is None else target.met(value),
        }
        for target, value in _found(report)
    ]


def _found(report: Mapping[str, Any]) -> Iterator[tuple[Target, float | None]]:
    features = report["machine"]["torch CPU features"]
    for target in TARGETS:
        if target.features in (None, features):
            value: Any = report
            try:
                for key in target.figure.split("."):
                    value = value[key]
            except KeyError:
                continue
            yield target, value
