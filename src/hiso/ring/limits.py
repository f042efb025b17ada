"""What a site allows: it refuses a plan that asks for more, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from hiso.errors import SettingsError
from hiso.ring.messages import Plan


@dataclass(frozen=True)
class Told:
    """What a site has answered so far.

    Attributes:
        scalars: float32 numbers in all its replies.
        position: The last round that it answered; 0 before the first.
    """

    scalars: int = 0
    position: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a site lets a server ask. It is the site's own decision, and no part of the run.

    Attributes:
        scalars_per_round: Most float32 numbers in one reply.
        scalars: Most float32 numbers in all replies together.
        mu_least: Smallest perturbation size μ.
        mu_most: Largest.
        batch: Fewest examples whose mean loss is measured.
        position: Once past this position, the site goes back to no earlier one, whatever the server
            has rolled back.

    Raises:
        SettingsError: A limit allows nothing, or is no number.
    """

    scalars_per_round: int = 2**24
    scalars: float = math.inf
    mu_least: float = 0.0
    mu_most: float = math.inf
    batch: int = 1
    position: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} = {value} must be at least {least}"
            for name, value, least in (
                ("scalars_per_round", self.scalars_per_round, 1),
                ("scalars", self.scalars, 1),
                ("mu_least", self.mu_least, 0),
                ("mu_most", self.mu_most, self.mu_least),
                ("batch", self.batch, 1),
                ("position", self.position, 0),
            )
            if not value >= least
        ]
        if problems:
            raise SettingsError("limits of a site: " + "; ".join(problems))

    def problems(self, plan: Plan, *, scalars: int, batch: int, told: Told) -> Iterator[str]:
        """Why a plan is refused, one sentence each; none if it is not.

        Args:
            plan: The plan.
            scalars: float32 numbers that its reply will have.
            batch: Examples of the site's batches.
            told: What the site has answered so far.
        """
        if scalars > self.scalars_per_round:
            yield f"it asks for {scalars} scalars, {self.scalars_per_round} a round are allowed"
        if told.scalars + scalars > self.scalars:
            yield (
                f"it asks for {scalars} scalars beside the {told.scalars} of before, "
                f"{self.scalars:.0f} in all are allowed"
            )
        if not self.mu_least <= plan.mu <= self.mu_most:
            yield f"mu = {plan.mu:g} must lie in [{self.mu_least:g}, {self.mu_most:g}]"
        if batch < self.batch:
            yield f"batches of {batch} examples are too small, {self.batch} are needed"
        if plan.round < self.position <= told.position:
            yield (
                f"round {plan.round} lies before position {self.position}, and the site has "
                f"answered up to round {told.position}"
            )
