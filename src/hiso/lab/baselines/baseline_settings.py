"""The settings of a baseline: some of hiso's settings, and some of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from hiso.run.settings import Hyper, Settings, Values, near, parse

BASELINES: dict[str, dict[str, float]] = {
    "fedavg": {"lr": 0.1},
    "fedadam": {"lr": 0.1, "server_lr": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedyogi": {"lr": 0.0316, "server_lr": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
    "fedadagrad": {"lr": 0.1, "server_lr": 0.1, "tau": 1e-3},
    "fedzo": {"lr": 3e-4},
}
"""The baselines by name, with the defaults of their hyper-parameters: those of Flower's strategies,
and those of hiso for `fedzo`. Flower has no default for the `lr` of FedAvg's clients."""

ZEROTH_ORDER = frozenset({"fedzo"})
"""The baselines that measure along directions."""

_HYPER = frozenset({name for hyper in BASELINES.values() for name in hyper})
_MEASURING = frozenset({"mu", "directions", "scheme", "noise"})
_COMMON = frozenset(
    {"method", "model", "task", "task_definition", "data"}
    | {"max_length", "prompt_style", "clients", "sample", "rounds"}
    | {"local_steps", "batch_size", "weighting", "partition", "alpha", "partition_column", "seed"}
    | {"dtype", "device", "eval_every", "dev_examples", "test_examples", "client_examples"}
    | {"divergence_factor"}
)
Factor = Annotated[float | None, Field(ge=0, lt=1)]


def accepted(method: str) -> frozenset[str]:
    """Names of the settings that a baseline has."""
    measuring = _MEASURING if method in ZEROTH_ORDER else frozenset[str]()
    return _COMMON | measuring | frozenset(BASELINES[method])


class BaselineSettings(Values):
    """The settings of a baseline. Settings of hiso have the same meaning and the same defaults.

    `accepted` gives the settings that a method has; all others are refused.
    """

    method: str = Field("fedavg", description=f"One of {', '.join(BASELINES)}.")
    lr: Hyper = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        None, description="Learning rate of a client's local steps."
    )
    server_lr: Hyper = Field(None, description="Learning rate η of the server.")
    beta_1: Factor = Field(None, description="Decay of the server's first moment.")
    beta_2: Factor = Field(None, description="Decay of the server's second moment.")
    tau: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = Field(
        None, description="Added to the root of the second moment."
    )

    @model_validator(mode="after")
    def _agree(self) -> BaselineSettings:
        if self.method not in BASELINES:
            text = f"method: unknown baseline {self.method!r}" + near(self.method, BASELINES)
            raise ValueError(text)
        known = accepted(self.method)
        problems = [
            f"{key}: {self.method} has no such setting; of its own it has "
            + ", ".join(sorted(known - _COMMON))
            for key in sorted(self.model_fields_set - known)
            if getattr(self, key) is not None
        ]
        if self.mu == "auto":
            problems.append("mu: auto is for hiso's own methods, set a number")
        if self.dtype != "float32":
            problems.append("dtype: baselines compute in float32")
        try:
            self.model_copy(update={"mu": 1e-3} if self.mu == "auto" else {}).as_hiso()
        except ValidationError as error:
            for problem in error.errors():
                problems += problem["msg"].removeprefix("Value error, ").splitlines()
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def hyper(self) -> dict[str, float]:
        """The method's hyper-parameters, with defaults for omitted ones."""
        given = {name: getattr(self, name) for name in BASELINES[self.method]}
        return {
            name: BASELINES[self.method][name] if value is None else value
            for name, value in given.items()
        }

    def facts(self) -> dict[str, Any]:
        """All settings that the method has, as plain JSON, with defaults spelled out."""
        known = accepted(self.method)
        kept = {key: value for key, value in self.model_dump().items() if key in known}
        if self.task_definition is None:
            del kept["task_definition"]
        if self.prompt_style == "plain":
            del kept["prompt_style"]
        scheme = {"scheme": self.scheme or "forward"} if "scheme" in known else {}
        return {**kept, **scheme, **self.hyper}

    def as_hiso(self) -> Settings:
        """Settings of the equivalent hiso run: `zo_sgd` along each client's own directions.

        Raises:
            ValidationError: They are not valid settings of a run.
        """
        own = (_COMMON | _MEASURING) - {"method"}
        values = {key: getattr(self, key) for key in own}
        return Settings.model_validate(
            {**values, "method": "zo_sgd", "lr": self.hyper["lr"], "per_client": True}
        )


def parse_baseline(values: Mapping[str, Any], source: str = "settings") -> BaselineSettings:
    """Checks settings, and reports all problems at once.

    Raises:
        SettingsError: A key is unknown or does not belong to the method, or a value is out of
            range or contradicts another.
    """
    return parse(BaselineSettings, values, source)
