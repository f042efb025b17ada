"""Measures how well scalars agree with true derivatives, at a given mu, scheme and dtype.

mu trades off two errors. Rounding: a loss has a limited number of digits, and its rounding error
is divided by mu. Truncation: a difference divided by mu equals the derivative up to terms in mu
(forward, HiSo, Eq. 8) or mu² (central). Both errors are measured together, along actual
directions, by comparison with derivatives: central differences in float32 at `REFERENCE_MU`, where
both errors are small for a language model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.local import Local
from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Scheme
from hiso.core.method.base import Needs
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import NonFiniteLoss

REFERENCE_MU = 3e-4

Measure = Callable[[], Outcome]
"""Evaluates the model with its present parameters on one fixed batch."""


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of scalars measured at `mu` by `scheme`.

    Attributes:
        mu: Perturbation size.
        scheme: Forward or central differences.
        noise: Root mean square of the scalars' errors, divided by that of the derivatives. Errors
            that do not depend on the derivative multiply the variance of a step by 1 + noise².
        correlation: Correlation of scalars and derivatives, over the directions.
    """

    mu: float
    scheme: Scheme
    noise: float
    correlation: float


def scalars(
    replica: Replica, measure: Measure, mu: float, directions: int, needs: Needs = "loss"
) -> dict[Scheme, NDArray[np.float64]]:
    """Directional derivatives [P] along round 0's shared directions, by each scheme.

    Measures 2P + 1 outcomes. With `needs` = "loss" the results are differences of mean losses,
    with "scores" the gradient that `Local` computes from label scores.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
        SettingsError: Scores are needed, but there are none.
    """
    mu = float(np.float32(mu))

    def at(direction: int, sign: int) -> Outcome:
        replica.write(Point(0, 0, 0, direction, sign), mu=mu)
        outcome = measure()
        if not math.isfinite(outcome.mean):
            raise NonFiniteLoss(
                f"the loss is {outcome.mean} at direction {direction} ({sign:+d}mu, mu = {mu:g}): "
                "lower mu, or use a wider dtype"
            )
        return outcome

    base = at(0, 0)
    ahead, behind = ([at(p, sign) for p in range(directions)] for sign in (1, -1))
    if needs == "scores":
        forward, central = (Local.of(base, ahead, low, mu).gradient for low in ([], behind))
    else:
        here, high, low = base.mean, *(np.array([o.mean for o in some]) for some in (ahead, behind))
        forward, central = (high - here) / mu, (high - low) / (2 * mu)
    return {"forward": forward, "central": central}


def judge(
    mu: float, scheme: Scheme, found: NDArray[np.float64], truth: NDArray[np.float64]
) -> Accuracy:
    """Compares scalars with derivatives."""
    size = np.sqrt(np.mean(truth**2))
    noise = float(np.sqrt(np.mean((found - truth) ** 2)) / size) if size else np.inf
    with np.errstate(invalid="ignore"):
        correlation = float(np.nan_to_num(np.corrcoef(found, truth)[0, 1]))
    return Accuracy(mu, scheme, noise, correlation)
