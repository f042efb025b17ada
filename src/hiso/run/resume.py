"""Checks the differences between a command and the run that it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from hiso.core.method.base import Method
from hiso.errors import RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.settings import CHANGEABLE, Settings, near, parse_settings, parse_values


def merge_settings(
    folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any], changes: Mapping[str, Any]
) -> Settings:
    """The settings of the resumed run: the stored ones with `changes`.

    Given settings must equal those of the run. Settings that are not given are taken from the run,
    and so is a `mu` of auto, which was measured when the run began.

    Raises:
        RunConflict: A given setting differs from the stored one, or a change is not allowed.
        SettingsError: A setting is invalid.
    """
    unknown = [key for key in changes if key not in Settings.model_fields]
    if unknown:
        raise SettingsError(
            "; ".join(f"change of {k}: unknown key" + near(k, CHANGEABLE) for k in unknown)
        )
    fixed = sorted(set(changes) - CHANGEABLE)
    if fixed:
        raise RunConflict(
            f"{', '.join(fixed)} cannot change in a run: it is fixed for the whole run. Start "
            f"another run, in another folder. Changeable: {', '.join(sorted(CHANGEABLE))}",
            settings={key: (stored.get(key), changes[key]) for key in fixed},
        )
    given = {key: value for key, value in given.items() if (key, value) != ("mu", "auto")}
    if isinstance(table := given.get("task_definition"), Mapping):
        whole = {**(stored.get("task_definition") or {}), **table}
        given = {**given, "task_definition": whole}
    asked = parse_values({**stored, **given})
    now = parse_values(stored)
    different: dict[str, tuple[Any, Any]] = {}
    for key in Settings.model_fields:
        if key in given and key not in changes:
            different |= _differences(key, getattr(now, key), getattr(asked, key))
    if different:
        raise RunConflict(
            f"{folder} holds a run with other settings:\n"
            + "\n".join(
                f"  {key}: {here!r} in the run, {there!r} asked for"
                for key, (here, there) in different.items()
            )
            + "\nUse another folder for a new run, or pass these as changes to change this run.",
            settings=different,
        )
    return parse_settings({**stored, **changes})


def _differences(key: str, here: Any, there: Any) -> dict[str, tuple[Any, Any]]:
    """A setting that differs, by its name; for tables, only the entries that differ."""
    if here == there:
        return {}
    if isinstance(here, BaseModel) and isinstance(there, BaseModel):
        names = type(here).model_fields
        parts = ((f"{key}.{name}", getattr(here, name), getattr(there, name)) for name in names)
        return {name: (mine, other) for name, mine, other in parts if mine != other}
    return {key: (here, there)}


def check_method(
    ledger: Ledger, position: int | None, method: Method, changes: Mapping[str, Any]
) -> None:
    """Checks that hyper-parameters of the user's own method differ from the log only by `changes`.

    Hyper-parameters that are also settings are compared with the settings.

    Args:
        ledger: The run's ledger.
        position: Compare with the values at this position; None for the end of the log.
        method: The method, with `changes`.
        changes: The allowed differences.

    Raises:
        RunConflict: A hyper-parameter differs from the log; the message names it.
    """
    force = ledger.hyper_at(position)
    if set(force) != set(method.hyper):
        raise RunConflict(
            f"the run's method has the hyper-parameters {', '.join(force)}, this one "
            f"{', '.join(method.hyper)}: it is not the method that the run was made with"
        )
    different = [
        f"  {key}: {force[key]:g} in the run, {value:g} asked for"
        for key, value in method.hyper.items()
        if not (key in Settings.model_fields or key in changes)
        and np.float32(value) != np.float32(force[key])
    ]
    if different:
        raise RunConflict(
            "the run's method has other hyper-parameters:\n"
            + "\n".join(different)
            + "\nPass new values as changes, or start another run in another folder."
        )
