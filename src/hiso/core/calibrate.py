"""How well scalars agree with the derivatives they stand for, at a given mu, scheme and dtype.

Two errors pull against each other. Rounding: a loss is known to so many digits only, which a
difference divides by mu. Truncation: a difference over mu is a derivative up to terms in mu
(forward, HiSo, Eq. 8) or mu² (central). Both are measured together, along real directions, against
the derivatives themselves: central differences in float32 at `REFERENCE_MU`, where both errors are
small for a language model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiso.core.probe import Probe, Scheme
from hiso.core.replica import Replica

REFERENCE_MU = 3e-4

Loss = Callable[[], float]
"""The loss of one fixed batch under the model as it is written now."""


@dataclass(frozen=True)
class Accuracy:
    """What came of measuring at `mu` by `scheme`.

    Attributes:
        mu: Perturbation size.
        scheme: Differences taken.
        noise: Root mean square of the scalars' errors over that of the derivatives. Errors that
            do not depend on the derivative raise the variance of a step by 1 + noise².
        correlation: Of scalars and derivatives, over the directions.
    """

    mu: float
    scheme: Scheme
    noise: float
    correlation: float


def scalars(
    replica: Replica, loss: Loss, mu: float, directions: int
) -> dict[Scheme, NDArray[np.float64]]:
    """Directional derivatives [P] along round 0's shared directions, by either scheme.

    Takes 2P + 1 losses. A forward difference is the central one plus half of mu times the
    curvature along the direction.

    Raises:
        NonFiniteLoss: A loss is NaN or infinite.
    """
    probe = Probe(client=0, round=0, steps=1, directions=directions, mu=mu, curvature=True)
    while (point := probe.ask()) is not None:
        replica.write(point, round=0, mu=probe.mu)
        probe.tell(loss())
    assert probe.curvature is not None
    central, curvature = (x[0].astype(np.float64) for x in (probe.scalars, probe.curvature))
    return {"forward": central + probe.mu / 2 * curvature, "central": central}


def judge(
    mu: float, scheme: Scheme, found: NDArray[np.float64], truth: NDArray[np.float64]
) -> Accuracy:
    """Compares scalars with derivatives."""
    size = np.sqrt(np.mean(truth**2))
    noise = float(np.sqrt(np.mean((found - truth) ** 2)) / size) if size else np.inf
    with np.errstate(invalid="ignore"):
        correlation = float(np.nan_to_num(np.corrcoef(found, truth)[0, 1]))
    return Accuracy(mu, scheme, noise, correlation)
