"""Chooses the perturbation size for a model and the precision of its forward passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.calibrate import REFERENCE_MU, Accuracy, judge, scalars
from hiso.core.measure.outcome import Outcome
from hiso.core.measure.probe import Scheme
from hiso.core.method.base import Method
from hiso.errors import SettingsError
from hiso.run.observer import Advance, Observer, Silent
from hiso.run.settings import Settings
from hiso.run.workload.base import Workload, make_replica

DIRECTIONS = 8
GOOD = 0.3
"""Noise up to which forward differences (P + 1 passes) are preferred to central ones (2P passes).
It corresponds to a correlation of 0.96 and a variance 9 % above that of exact derivatives."""
DROWNED = 1.0
"""Noise above which the error of a scalar is larger than the derivative."""

_FLOAT32 = (3e-4, 1e-3, 3e-3)
_CENTRAL: tuple[Scheme, ...] = ("central",)
_HALF = (2e-3, 5e-3, 1e-2, 2e-2)
_REMEDY = " Use dtype = float32, or a larger batch_size."


def settle(settings: Settings, method: Method, workload: Workload, observer: Observer) -> Settings:
    """The settings with measured `mu` and `scheme` if `mu` is auto; otherwise `mu` is checked.

    Measures on the first batch of client 0, at the base model, as the client would. A `mu` between
    3e-4 and 3e-3 in float32 is known to work, and is accepted without measuring.

    Raises:
        SettingsError: At this `mu` the error of scalars would be larger than the derivatives (the
            message names a `mu` and scheme that work), or no `mu` works.
        NonFiniteLoss: The loss of the base model is NaN or infinite.
    """
    if settings.mu == "auto":
        best = _best(settings, method, workload, observer)
        if not best.noise < DROWNED:
            raise SettingsError(f"mu = auto finds none: {_in_words(best, settings)}.{_REMEDY}")
        observer.notice(f"mu = auto: {_in_words(best, settings)}")
        return settings.model_copy(update={"mu": best.mu, "scheme": best.scheme})
    mu, scheme = settings.mu, settings.scheme or "forward"
    settings = settings.model_copy(update={"scheme": scheme})
    if settings.dtype == "float32" and _FLOAT32[0] <= mu <= _FLOAT32[-1]:
        return settings
    (found,) = _survey(settings, method, workload, [mu], [scheme], observer)
    if not found.noise < DROWNED:
        best = _best(settings.model_copy(update={"scheme": None}), method, workload, observer)
        remedy = (
            f" Set mu = {best.mu:g} with scheme = {best.scheme}, where it is {best.noise:.2f} "
            "times, or let mu = auto choose."
            if best.noise < DROWNED
            else _REMEDY
        )
        raise SettingsError(f"mu is unsuitable: {_in_words(found, settings)}.{remedy}")
    return settings


def _in_words(found: Accuracy, settings: Settings) -> str:
    return (
        f"at mu = {found.mu:g} with {found.scheme} differences in {settings.dtype}, the error of "
        f"a scalar is {found.noise:.2f} times the derivative's size (correlation "
        f"{found.correlation:.2f} over {DIRECTIONS} directions)"
    )


def _best(settings: Settings, method: Method, workload: Workload, observer: Observer) -> Accuracy:
    """The forward difference with the least noise, if it is good; otherwise the best of all."""
    mus = _FLOAT32 if settings.dtype == "float32" else _HALF
    schemes: Sequence[Scheme] = [settings.scheme] if settings.scheme else get_args(Scheme)
    found = _survey(settings, method, workload, mus, schemes, observer)
    cheap = [each for each in found if each.scheme == "forward" and each.noise <= GOOD]
    return min(cheap or found, key=lambda each: each.noise)


def _survey(
    settings: Settings,
    method: Method,
    workload: Workload,
    mus: Sequence[float],
    schemes: Sequence[Scheme],
    observer: Observer,
) -> list[Accuracy]:
    """The accuracy at each `mu` by each scheme; for methods with curvature, only central ones."""
    wanted: dict[str, set[float]] = {"float32": {REFERENCE_MU}}
    wanted.setdefault(settings.dtype, set()).update(mus)
    passes = sum(map(len, wanted.values())) * (2 * DIRECTIONS + 1)
    with observer.phase("measuring how exact scalars are", passes) as advance:
        found = {
            dtype: _measure(settings.model_copy(update={"dtype": dtype}), workload, at, advance)
            for dtype, at in wanted.items()
        }
    truth = found["float32"][REFERENCE_MU]["central"]
    return [
        judge(mu, scheme, found[settings.dtype][mu][scheme], truth)
        for mu in mus
        for scheme in (_CENTRAL if method.measures_curvature else schemes)
    ]


def _measure(
    settings: Settings, workload: Workload, mus: Iterable[float], advance: Advance
) -> dict[float, dict[Scheme, NDArray[np.float64]]]:
    """The scalars at each `mu`, by scheme, on the first batch of client 0."""
    batch = workload.shards[0].batch(0, 0)
    identity = replace(workload.identity, dtype=settings.dtype)
    replica = make_replica(identity, workload, settings.memory, Silent())
    objective = workload.objective(replica.rows, joint=True)

    def outcome() -> Outcome:
        advance(1)
        return Outcome.of(objective([batch])[0])

    needs = replica.method.needs
    try:
        return {mu: scalars(replica, outcome, mu, DIRECTIONS, needs) for mu in mus}
    finally:
        replica.release()
