"""The runs of a comparison; the name of each run's folder is made from its settings."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hiso.core.identity import canonical_json
from hiso.lab.compare.spec import Change, Comparison, Entry, MethodEntry, checked
from hiso.lab.compare.tables import heading, values


@dataclass(frozen=True, eq=False)
class Trial:
    """One run.

    Attributes:
        task: Label of the task.
        model: Label of the model.
        method: Label of the method.
        chosen: Values of the tuned settings.
        seed: The seed.
        settings: All settings that are not defaults.
        changes: Settings that change during the run.
    """

    task: str
    model: str
    method: str
    chosen: Mapping[str, float]
    seed: int
    settings: Mapping[str, Any]
    changes: tuple[Change, ...] = ()

    @cached_property
    def _checked(self) -> dict[str, Any]:
        return checked(self.settings)

    @property
    def rounds(self) -> int:
        """Total number of rounds."""
        return self._checked["rounds"]

    @cached_property
    def folder(self) -> str:
        """A readable name with a hash of all settings; equal runs have the same name."""
        changes = [change.model_dump() for change in self.changes]
        text = canonical_json({"settings": self._checked, "changes": changes}, "trial")
        chosen = "-".join(f"{key}={value:g}" for key, value in self.chosen.items())
        words = f"{self.task} {self.model} {self.method} {chosen} {self.seed}"
        slug = re.sub(r"[^a-zA-Z0-9=.]+", "-", words).strip("-").lower()
        return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def label(self) -> str:
        """A name for display."""
        return heading(self.task, (self.model, self.method, values(self.chosen)))


def tuning_trials(comparison: Comparison) -> Iterator[Trial]:
    """The tuning runs."""
    tuning = comparison.tuning
    for task, model, method in _cells(comparison):
        grid = comparison.grid_of(method)
        if method.tuned_as is not None or not _has_choice(grid):
            continue
        for combination in itertools.product(*grid.values()):
            chosen = dict(zip(grid, combination, strict=True))
            for seed in tuning.seeds:
                trial = _trial(comparison, task, model, method, chosen, seed)
                if tuning.rounds is not None:
                    short = {**trial.settings, "rounds": tuning.rounds}
                    kept = tuple(c for c in trial.changes if c.round < tuning.rounds)
                    trial = Trial(task.label, model.label, method.label, chosen, seed, short, kept)
                yield trial


def final_trials(
    comparison: Comparison, best: Mapping[tuple[str, str, str], Mapping[str, float]]
) -> Iterator[Trial]:
    """The reported runs, with the values chosen for each (task, model, method)."""
    for task, model, method in _cells(comparison):
        tuned = method.tuned_as or method.label
        chosen = best.get((task.label, model.label, tuned))
        if chosen is None:
            grid = comparison.grid_of(method)
            if _has_choice(grid):
                continue  # every value of the grid failed
            chosen = {key: choices[0] for key, choices in grid.items()}
        for seed in comparison.seeds:
            yield _trial(comparison, task, model, method, chosen, seed)


def _cells(comparison: Comparison) -> Iterator[tuple[Entry, Entry, MethodEntry]]:
    return itertools.product(comparison.tasks, comparison.models, comparison.methods)


def _has_choice(grid: Mapping[str, tuple[float, ...]]) -> bool:
    return any(len(choices) > 1 for choices in grid.values())


def _trial(
    comparison: Comparison,
    task: Entry,
    model: Entry,
    method: MethodEntry,
    chosen: Mapping[str, float],
    seed: int,
) -> Trial:
    settings = comparison.settings_of(task, model, method, chosen, seed)
    return Trial(task.label, model.label, method.label, chosen, seed, settings, method.changes)
