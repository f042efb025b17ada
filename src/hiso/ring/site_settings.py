"""What a site allows a server to ask, and what its replies show: its own decision, for all runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hiso.core.method.base import Method
from hiso.ring.messages import Plan, Reply

Value = float | str
"""A setting of the run that a site may insist on."""


class SiteSettings(BaseModel):
    """The settings of one site. They are no part of a run, and no server can change them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_scalars_per_round: Annotated[int, Field(ge=1)] = Field(
        default=2**24, description="Most float32 numbers in one reply."
    )
    max_scalars: Annotated[float, Field(ge=1)] = Field(
        default=math.inf,
        description="Most float32 numbers in all replies together, over all runs of the worker's "
        "folder.",
    )
    min_mu: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Smallest perturbation size μ."
    )
    max_mu: Annotated[float, Field(gt=0)] = Field(default=math.inf, description="Largest μ.")
    min_batch: Annotated[int, Field(ge=1)] = Field(
        default=1, description="Fewest examples whose mean loss is measured."
    )
    min_position: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="Once past this position of a run, the site answers for no earlier one, "
        "whatever the server has rolled back.",
    )
    must_match: tuple[str, ...] = Field(
        default=(),
        description="Settings that every plan must have as the site's own settings have them: "
        "local_steps, directions, mu, scheme, or hyper-parameters such as lr.",
    )
    batches: Literal["secret", "seed"] = Field(
        default="secret",
        description="secret: batches are drawn with the site's own key. seed: from the run's seed, "
        "which every participant knows; then a simulation gives the same model.",
    )
    report_loss: Literal["rounded", "exact", "none"] = Field(
        default="rounded",
        description="The mean loss in a reply: with three significant digits, exact, or left out.",
    )

    evaluate: Literal["no", "test", "train"] = Field(
        default="no",
        description="Whether right answers may be counted for `hiso eval --split sites`, and on "
        "which examples: the site's test split or its training examples. Two numbers leave the "
        "site, how many examples and how many right answers.",
    )

    @model_validator(mode="after")
    def _agree(self) -> SiteSettings:
        if self.max_mu < self.min_mu:
            raise ValueError(f"max_mu = {self.max_mu:g} is below min_mu = {self.min_mu:g}")
        return self

    def problems(
        self, plan: Plan, method: Method, batch: int, *, sent: int, reached: int
    ) -> Iterator[str]:
        """Why a plan is refused, whatever the log holds; one sentence each.

        Args:
            plan: The plan.
            method: The run's method.
            batch: Number of examples in the site's batches.
            sent: float32 numbers in all replies so far.
            reached: The last round of the plan's run that the site has answered.
        """
        kinds = 2 if method.measures_curvature else 1
        scalars = plan.steps * plan.directions * kinds + len(method.facts)
        if scalars > self.max_scalars_per_round:
            yield f"it asks for {scalars} scalars, {self.max_scalars_per_round} a round are allowed"
        if sent + scalars > self.max_scalars:
            yield (
                f"it asks for {scalars} scalars beside the {sent} of before, "
                f"{self.max_scalars:.0f} in all are allowed"
            )
        if not self.min_mu <= plan.mu <= self.max_mu:
            yield f"mu = {plan.mu:g} must lie in [{self.min_mu:g}, {self.max_mu:g}]"
        if batch < self.min_batch:
            yield f"batches of {batch} examples are too small, {self.min_batch} are needed"
        if plan.round < self.min_position <= reached:
            yield (
                f"round {plan.round} lies before position {self.min_position}, and the site has "
                f"answered up to round {reached}"
            )

    def show(self, reply: Reply) -> Reply:
        """The reply as it may leave the site: with the loss that `report_loss` allows."""
        match self.report_loss:
            case "none":
                return replace(reply, loss=None)
            case "rounded":
                loss = None if reply.loss is None else float(f"{reply.loss:.3g}")
                return replace(reply, loss=loss)
            case "exact":
                return reply


def differences(
    plan: Plan, hyper: Mapping[str, float], expected: Mapping[str, Value]
) -> Iterator[str]:
    """Where a plan differs from what the site insists on, one sentence each.

    Args:
        plan: The plan.
        hyper: Hyper-parameters at the plan's position; its changes override them.
        expected: The values that the site insists on, by the names of settings.
    """
    found: dict[str, Value] = {
        **hyper,
        **plan.changes,
        "local_steps": plan.steps,
        "directions": plan.directions,
        "mu": plan.mu,
        "scheme": plan.scheme,
    }
    for name, value in expected.items():
        now = found.get(name)
        same = now == value if isinstance(value, str) else _rounded(now) == _rounded(value)
        if not same:
            yield f"{name} is {now}, this site insists on {value}"


def _rounded(value: Value | None) -> np.float32 | None:
    """As a record holds it."""
    return None if value is None else np.float32(value)
