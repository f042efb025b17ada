"""A learning rate computed from the curvature along the directions, for any method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.local import Local
from hiso.core.method.base import Method, Needs
from hiso.core.method.derived import running_mean
from hiso.errors import SettingsError

if TYPE_CHECKING:
    from hiso.core.record import Record


def auto_lr(method: Method) -> Method:
    """The same method, whose `lr` the server sets before every round.

        lr = ½·P / (c·(1 + 32/n)),  n = m·B examples a round; see also `Method.rate`

    This is half of the step that would minimise the loss along Σ_p g_p z_p, if g² contained 32/n
    parts of noise for one part of signal. c is the curvature along this step, and is computed from
    the log: every client sends t of its batch (`Local.gradient_curvature`); c is the record's mean
    t̄ after round 0, then 0.9·c + 0.1·t̄. The rate in the record of round 0 is computed from its
    own t̄; all local steps of round 0 are measured at the same weights. The scalars are
    `Local.gradient`, computed from label scores (or losses of tokens) instead of mean losses, so
    central differences take 2P + 1 passes.

    Raises:
        SettingsError: The method solves for its own step.
    """
    given = {name: value for name, value in method.hyper.items() if name != "lr"}
    return with_auto_lr(type(method))(**given, feed=method.feed)


@cache
def with_auto_lr(kind: type[Method]) -> type[Method]:
    """The class that `auto_lr` gives for a method of class `kind`.

    Raises:
        SettingsError: The method solves for its own step.
    """
    if kind.needs == "scores":
        raise SettingsError(f"{kind.name} solves for its own step: give it lr, a share of that")

    @dataclass(frozen=True, kw_only=True)
    class AutoLr(kind):
        auto: ClassVar[bool] = True
        needs: ClassVar[Needs] = "scores"
        facts: ClassVar[tuple[str, ...]] = (*kind.facts, "t")
        derived: ClassVar[Mapping[str, float]] = {**kind.derived, "c": 0.0}

        lr: float = 0.0

        def solve(
            self,
            local: Local,
            facts: Mapping[str, float],
            hyper: Mapping[str, float],
            derived: Mapping[str, float],
        ) -> tuple[NDArray[np.float64], dict[str, float]]:
            del hyper, derived
            return local.gradient, {"t": facts.get("t", local.gradient_curvature)}

        def remember(self, derived: Mapping[str, float], record: Record) -> dict[str, float]:
            before = {name: value for name, value in derived.items() if name != "c"}
            c = running_mean(derived["c"], record.facts["t"])
            return {**super().remember(before, record), "c": c}

        def follow(
            self,
            hyper: Mapping[str, float],
            derived: Mapping[str, float],
            directions: int,
            examples: int | None,
        ) -> dict[str, float]:
            c, n = derived["c"], self.known(examples, "lr")
            return {"lr": self.rate(0.5 * directions / (c * (1 + 32 / n)), hyper)} if c else {}

    AutoLr.__name__, AutoLr.__qualname__ = f"AutoLr{kind.__name__}", f"AutoLr{kind.__qualname__}"
    return AutoLr
