"""The preset of an experiment: a TOML file, which is checked completely before the start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hiso.errors import SettingsError
from hiso.lab.theory.dimension.problems import Curve
from hiso.ring.round_settings import RoundSettings
from hiso.run.settings import near, read_toml

Positive = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Level = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Smoothing = Annotated[float, Field(gt=0, lt=1)]

Candidate = Literal["one", "hiso", "gauss_newton", "gauss_newton_sqrt", "second_moment_sqrt"]
Racer = Literal["zo_sgd", "hiso", "oracle", "oracle_sqrt", "newton"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ProblemPreset(_Strict):
    """A problem for several numbers of weights. Without a head all eigenvalues are 1.

    `methods`: `zo_sgd`; `hiso`; HiSo with h fixed to the Hessian's diagonal, floored (`oracle`),
    to its root, floored (`oracle_sqrt`), or not floored (`newton`).
    """

    name: str
    curve: Curve = "least_squares"
    head: Positive | None = None
    condition: Annotated[float, Field(ge=1)] | None = None
    tail_trace: Size | None = None
    tail_share: Share | None = None
    dimensions: Annotated[list[Positive], Field(min_length=1)]
    seeds: Annotated[list[Positive], Field(min_length=1)]
    methods: Annotated[list[Racer], Field(min_length=1)]
    max_rounds: Positive

    @model_validator(mode="after")
    def _together(self) -> ProblemPreset:
        head = [self.head, self.condition, self.tail_trace, self.tail_share]
        if None in head and any(value is not None for value in head):
            raise ValueError("head, condition, tail_trace and tail_share come together")
        if len(self.seeds) != len(self.dimensions):
            raise ValueError("seeds must have as many entries as dimensions")
        if self.head is None and {"oracle", "oracle_sqrt", "newton"} & set(self.methods):
            raise ValueError("without a head an oracle equals zo_sgd: omit it")
        return self


class _Federated(_Strict):
    """A federation of one local step a round. `nu`, `floor`: those of `hiso`."""

    clients: Positive = 6
    sample: Positive = 2
    directions: Positive = 5
    mu: Size = 1e-3
    nu: Smoothing = 0.05
    floor: Level = 0.25

    @property
    def rules(self) -> RoundSettings:
        """The round settings."""
        return RoundSettings(
            clients=self.clients,
            sample=self.sample,
            steps=1,
            directions=self.directions,
            mu=self.mu,
        )


class DimensionPreset(_Federated):
    """Rounds to a fraction `target` of the initial loss against the number of weights.

    `grid`: learning rates tried for every method and dimension, in multiples of
    `Spectrum.step_unit`. `client`, `batch`: see `Shifts`.
    `oracle_floor`: smallest value of an oracle's h, divided by the largest.
    """

    experiment: Literal["dimension"]
    target: Share = 0.1
    grid: Annotated[list[Size], Field(min_length=1)]
    mu: Size = 1e-4
    client: Level = 0.1
    batch: Level = 0.1
    oracle_floor: Share = 0.01
    problems: Annotated[list[ProblemPreset], Field(min_length=1)]


class Standing(_Strict):
    """HiSo with a learning rate of 0, so that h becomes stationary."""

    nu: Smoothing
    directions: Positive
    rounds: Positive


class CurvaturePreset(_Federated):
    """A small network on scikit-learn's digits, small enough for an exact Hessian.

    `positions` of a run of HiSo are measured. The `standing` runs start from the weights of the
    last position, with `runs` different seeds each.
    """

    experiment: Literal["curvature"]
    seed: int = 0
    batch_size: Positive = 32
    lr: Size
    positions: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    examples: Positive = 1024
    probes: Positive = 200
    eigenvalues: Positive = 8
    standing: list[Standing] = []
    runs: Positive = 1


class LanguagePreset(_Strict):
    """A language model, with one backward pass for each of `examples` sentences.

    `run` is a table of settings as for `hiso run`. At each of its `positions`, `sampled` weights
    are drawn, in addition to the label words' rows. In `layers` the true Hessian is estimated with
    `probes` probes on `layer_examples` sentences.
    """

    experiment: Literal["language"]
    run: dict[str, Any]
    positions: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    examples: Annotated[int, Field(ge=4)] = 128
    sampled: Positive = 2**19
    layers: list[str] = []
    layer_examples: Positive = 32
    probes: Positive = 4
    eigenvalues: Positive = 6
    floors: Annotated[list[Share], Field(min_length=1)] = [0.1]
    powers: Annotated[list[float], Field(min_length=1)] = [1.0, 0.5, 0.25, -0.25]


class OraclePreset(_Federated):
    """Whole runs on scikit-learn's digits with a true diagonal as H, measured repeatedly.

    `candidates`: H = 1 (`one`: DeComFL); HiSo's H; and, from `examples` training images, the
    Gauss–Newton diagonal, its square root, and the square root of E ĝ², which is Adam's choice. The
    last three are measured every `measure_every` rounds, floored at `share` of their mean, and
    divided by their mean. `grid`: learning rates tried for each candidate.
    """

    experiment: Literal["oracle"]
    candidates: Annotated[list[Candidate], Field(min_length=1)]
    grid: Annotated[list[Size], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    rounds: Positive
    look_every: Positive = 50
    measure_every: Positive = 50
    examples: Positive = 256
    share: Share = 0.1
    batch_size: Positive = 32


Preset = DimensionPreset | CurvaturePreset | LanguagePreset | OraclePreset

KINDS: dict[str, type[Preset]] = {
    "dimension": DimensionPreset,
    "curvature": CurvaturePreset,
    "language": LanguagePreset,
    "oracle": OraclePreset,
}


def load_preset(path: Path) -> Preset:
    """The preset in a TOML file.

    Raises:
        SettingsError: The file cannot be read, or has errors; all of them are listed.
    """
    values = read_toml(path)
    kind = KINDS.get(str(values.get("experiment")))
    if kind is None:
        name = values.get("experiment")
        raise SettingsError(f"{path}: experiment = {name!r} must be one of {', '.join(KINDS)}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_line(kind, problem) for problem in error.errors()]
        raise SettingsError(f"{path}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _line(kind: type[Preset], problem: Any) -> str:
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        known: dict[str, type[BaseModel]] = {"problems": ProblemPreset, "standing": Standing}
        fields = known.get(str(problem["loc"][0]), kind).model_fields
        return f"{where}: unknown key" + near(str(problem["loc"][-1]), fields)
    if problem["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}"
