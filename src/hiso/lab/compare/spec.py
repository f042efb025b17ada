"""The definition of a comparison: methods × tasks × models × seeds × grid, from a TOML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hiso.errors import LoadError, SettingsError
from hiso.lab.baselines.baseline_settings import BASELINES, parse_baseline
from hiso.lab.compare.measure import Goal
from hiso.run.definition import Definition
from hiso.run.settings import CHANGEABLE, LORA, Settings, parse_settings, read_toml
from hiso.workloads.text.tasks import get_task

Positive = Annotated[int, Field(ge=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**64)], ...], Field(min_length=1)]
Grid = dict[str, Annotated[tuple[float, ...], Field(min_length=1)]]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(_Part):
    """Settings that take a new value after some rounds, as with `hiso run --change`."""

    round: Positive
    set: dict[str, Any]


class Entry(BaseModel):
    """One method, task or model: a label, and its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)

    label: str

    @property
    def settings(self) -> dict[str, Any]:
        """The entry's own settings by name."""
        return dict(self.model_extra or {})


class MethodEntry(Entry):
    """A method.

    Attributes:
        grid: Values to tune; by default those of the comparison. Empty for none.
        tuned_as: Label of another method whose tuned values this method uses.
        changes: Settings that change during the run.
    """

    grid: Grid | None = None
    tuned_as: str | None = None
    changes: tuple[Change, ...] = ()


class Tuning(_Part):
    """How values are tuned; the same for every method.

    Attributes:
        grid: Values by setting; all combinations are run.
        seeds: Seeds of the tuning runs.
        rounds: Rounds of the tuning runs; by default those of the reported runs.
    """

    grid: Grid = Field(default_factory=dict)
    seeds: Seeds = (1000,)
    rounds: Positive | None = None


class Comparison(_Part):
    """A comparison: every method on every task with every model, over all seeds.

    Attributes:
        title: Title of the comparison.
        settings: Settings of all runs, as for `hiso run`.
        tuning: How values are tuned on the tuning split.
        seeds: Seeds of the reported runs.
        reference: Label of the method that defines the target.
        goal: Whether the target is the reference's mean best accuracy, or its mean final loss,
            which must be reached at two evaluations in a row. With the loss, values are also tuned
            by the loss.
        target: The target as a number, instead of one from the reference.
        metric: The metric of the tuning split that is called accuracy; higher is better.
        threads: Threads of each run. They change last digits, so they belong to the comparison.
        methods: The methods.
        tasks: The tasks, partitions, or other differences in the data.
        models: The models.
    """

    title: str
    settings: dict[str, Any] = Field(default_factory=dict)
    tuning: Tuning = Tuning()
    seeds: Seeds = (0, 1, 2)
    reference: str | None = None
    goal: Goal = "best metric"
    target: float | None = None
    metric: str = "accuracy"
    threads: Positive = 1
    methods: Annotated[tuple[MethodEntry, ...], Field(min_length=1)]
    tasks: Annotated[tuple[Entry, ...], Field(min_length=1)] = (Entry(label=""),)
    models: Annotated[tuple[Entry, ...], Field(min_length=1)] = (Entry(label=""),)

    @field_validator("methods", "tasks", "models")
    @classmethod
    def _labels_differ(cls, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        twice = [label for label, n in Counter(e.label for e in entries).items() if n > 1]
        if twice:
            raise ValueError(f"label {', '.join(map(repr, twice))} is used twice")
        return entries

    @model_validator(mode="after")
    def _agree(self) -> Comparison:
        labels = [method.label for method in self.methods]
        problems = [
            f"{what} = {label!r} is not a method of this comparison: {', '.join(labels)}"
            for what, label in (
                ("reference", self.reference),
                *(("tuned_as", method.tuned_as) for method in self.methods),
            )
            if label is not None and label not in labels
        ]
        for method in self.methods:
            name = method.label
            if method.tuned_as is not None and method.grid is not None:
                problems.append(f"{name}: tuned_as and grid exclude each other")
            if method.tuned_as in {m.label for m in self.methods if m.tuned_as is not None}:
                problems.append(f"{name}: tuned_as names {method.tuned_as}, which is not tuned")
            alien = sorted({k for c in method.changes for k in c.set} - CHANGEABLE)
            if alien:
                problems.append(f"{name}: {', '.join(alien)} cannot change in a run")
            if method.changes and method.settings.get("method") in BASELINES:
                problems.append(f"{name}: baselines take no changes")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def grid_of(self, method: MethodEntry) -> Grid:
        """The grid of values for a method."""
        if method.tuned_as is not None:
            (method,) = (m for m in self.methods if m.label == method.tuned_as)
        return self.tuning.grid if method.grid is None else method.grid

    def settings_of(
        self, task: Entry, model: Entry, method: MethodEntry, chosen: Mapping[str, float], seed: int
    ) -> dict[str, Any]:
        """All settings of one run; more specific settings override more general ones."""
        parts = (self.settings, task.settings, model.settings, method.settings, chosen)
        merged: dict[str, Any] = {}
        for part in parts:
            merged |= part
        return merged | {"seed": seed}


def read_comparison(path: Path) -> Comparison:
    """The comparison that a TOML file describes, with every run's settings checked.

    Raises:
        SettingsError: The file cannot be read, or a key is unknown or a value wrong, in the file
            or in the settings of a run. All problems are reported.
    """
    try:
        comparison = Comparison.model_validate(read_toml(path))
    except ValidationError as error:
        lines: list[str] = []
        for problem in error.errors():
            where = ".".join(map(str, problem["loc"]))
            text = problem["msg"].removeprefix("Value error, ")
            lines += [f"  {where}: {line}" if where else f"  {line}" for line in text.splitlines()]
        raise SettingsError(f"{path}:\n" + "\n".join(lines)) from error
    problems: dict[str, None] = {}
    for task in comparison.tasks:
        for model in comparison.models:
            for method in comparison.methods:
                first = {key: values[0] for key, values in comparison.grid_of(method).items()}
                given = comparison.settings_of(task, model, method, first, comparison.seeds[0])
                try:
                    whole = checked(given)
                    name, known = whole["task"], _metrics(whole)
                except (LoadError, SettingsError) as error:
                    text = str(error).removeprefix("settings:").strip()
                    problems[f"  {method.label}: {text}"] = None
                    continue
                if comparison.metric not in known:
                    text = ", ".join(known) or "none of which more is better"
                    problems[f"  metric = {comparison.metric}: {name} has {text}"] = None
    if problems:
        raise SettingsError(f"{path}:\n" + "\n".join(problems))
    return comparison


def _metrics(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a run's task for which higher is better."""
    from hiso.workloads.vision.images import DATA_SETS

    name, table = settings["task"], settings.get("task_definition")
    if name in DATA_SETS:
        return ("accuracy",)
    found = Definition.model_validate(table).make_task(name) if table else get_task(name)
    if found.labels:
        return ("accuracy", "f1")
    return found.metrics if found.answers else ()


_YOUNGER = ("task_definition", "prompt_style", "train", *LORA)
"""Newer settings; left out if they are defaults, so that older runs keep their folders."""


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run or a baseline with all defaults, except for those in `_YOUNGER`.

    Raises:
        SettingsError: The settings are wrong.
    """
    if given.get("method") in BASELINES:
        whole = parse_baseline(given).model_dump()
    else:
        settings: Settings = parse_settings(given)
        whole = settings.with_hyper(settings.make_method()).model_dump()
    defaults = {name: Settings.model_fields[name].default for name in _YOUNGER}
    return {k: v for k, v in whole.items() if k not in defaults or v != defaults[k]}
