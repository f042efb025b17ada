"""Label biases, which any method can tune in addition to the weights of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.local import Local, contrasts
from hiso.core.method.base import Method, Needs

if TYPE_CHECKING:
    from hiso.core.record import Record


def label_bias(method: Method, labels: int) -> Method:
    """The same method, which also tunes a bias of each label: softmax(f + b) instead of
    softmax(f).

    b = Q·x has C numbers that sum to 0, Q [C, C − 1] is `contrasts(C)`, and x starts at 0. The
    effect of b on a loss is known exactly from the scores f of the base point, without a forward
    pass. A client sends the decrease of each x_j, summed over its local steps, as the facts x1 …
    x(C−1); every replica subtracts the records' means from x. So b is computed from the log, and
    is part of a replica's digest.

    A method that solves for its step adds the columns s·Q to those of the directions (see
    `Local.of`), and decreases x by lr·s·α. With every other method x_j decreases by half of its
    own Newton step, ½·g_j / (a_j + (14/B)·ā), where a_j is the larger of the Gauss–Newton and the
    empirical Fisher curvature, ā the mean of the a_j, and B the number of examples of the batch.

    Args:
        method: The method.
        labels: C, 2 or more.

    Raises:
        ValueError: There are fewer labels.
    """
    return with_label_bias(type(method), labels)(**method.hyper, feed=method.feed)


@cache
def with_label_bias(kind: type[Method], count: int) -> type[Method]:
    """The class that `label_bias` gives for a method of class `kind`, with `count` labels.

    Raises:
        ValueError: There are fewer labels than 2.
    """
    if count < 2:
        raise ValueError(f"{count} labels have no biases that could differ: there must be 2")
    names = tuple(f"x{j}" for j in range(1, count))
    solves = kind.needs == "scores" and not kind.auto

    @dataclass(frozen=True, kw_only=True)
    class LabelBias(kind):
        labels: ClassVar[int] = count
        needs: ClassVar[Needs] = "scores"
        facts: ClassVar[tuple[str, ...]] = (*kind.facts, *names)
        derived: ClassVar[Mapping[str, float]] = {**kind.derived, **dict.fromkeys(names, 0.0)}

        def solve(
            self,
            local: Local,
            facts: Mapping[str, float],
            hyper: Mapping[str, float],
            derived: Mapping[str, float],
        ) -> tuple[NDArray[np.float64], dict[str, float]]:
            seen = local if solves else local.without_biases()
            scalars, others = super().solve(seen, facts, hyper, derived)
            if solves:
                fall = hyper["lr"] * local.scale * scalars[local.directions :]
            else:
                fall = _half_newton(local)
            fallen = [facts.get(name, 0.0) for name in names] + fall
            told = {**others, **dict(zip(names, fallen.tolist(), strict=True))}
            return scalars[: local.directions], told

        def remember(self, derived: Mapping[str, float], record: Record) -> dict[str, float]:
            before = {name: value for name, value in derived.items() if name not in names}
            after = {name: derived[name] - record.facts[name] for name in names}
            return {**super().remember(before, record), **after}

        def biases(
            self, derived: Mapping[str, float], facts: Mapping[str, float]
        ) -> NDArray[np.float64]:
            x = [derived[name] - facts.get(name, 0.0) for name in names]
            rows = contrasts(count).tolist()
            return np.array(
                [math.fsum(q * at for q, at in zip(row, x, strict=True)) for row in rows]
            )

    LabelBias.__name__ = f"LabelBias{kind.__name__}"
    LabelBias.__qualname__ = f"LabelBias{kind.__qualname__}"
    return LabelBias


def _half_newton(local: Local) -> NDArray[np.float64]:
    """½·g_j / (a_j + (14/B)·ā) for each x_j, float64 [C − 1]; 0 where there is no curvature."""
    mine = slice(local.directions, None)
    a = np.maximum(np.diag(local.gauss_newton), np.diag(local.fisher))[mine]
    most = a + 14 / local.examples * a.mean()
    g = local.gradient[mine] * local.scale
    return np.divide(g, 2 * most, out=np.zeros_like(g), where=most > 0)
