"""What may differ between a command and the run that it goes on with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiso.errors import RunConflict, SettingsError
from hiso.run.settings import CHANGEABLE, Settings, near, parse_settings


def merge_settings(
    folder: Path, stored: Mapping[str, Any], given: Mapping[str, Any], changes: Mapping[str, Any]
) -> Settings:
    """The settings to go on with: those stored, with `changes`.

    Settings that are given must be those of the run; those that are not given count as the same.

    Raises:
        RunConflict: A given setting differs from the stored one, or a change is not allowed.
        SettingsError: A setting is wrong in itself.
    """
    unknown = [key for key in changes if key not in Settings.model_fields]
    if unknown:
        raise SettingsError(
            "; ".join(f"--change {k}: unknown key" + near(k, CHANGEABLE) for k in unknown)
        )
    fixed = sorted(set(changes) - CHANGEABLE)
    if fixed:
        raise RunConflict(
            f"{', '.join(fixed)} cannot change in a run: it is part of what the run is. "
            f"Start another run, with another --out. Changeable: {', '.join(sorted(CHANGEABLE))}"
        )
    wanted = parse_settings({**stored, **given, **changes})
    now = parse_settings(stored)
    different = [
        f"  {key}: {getattr(now, key)!r} in the run, {getattr(wanted, key)!r} asked for"
        for key in Settings.model_fields
        if key in given and key not in changes and getattr(now, key) != getattr(wanted, key)
    ]
    if different:
        raise RunConflict(
            f"{folder} holds a run with other settings:\n"
            + "\n".join(different)
            + "\nUse another --out for a new run, or --change KEY=VALUE to alter this one."
        )
    return wanted


def check_identity(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Makes sure that model, data and partition are those that the run was made with.

    The method is left out: its name is a setting, and its hyper-parameters may have changed.

    Raises:
        RunConflict: Something is not; names what.
    """
    different = [
        f"  {key}: {stored.get(key)} in the run, {found.get(key)} here"
        for key in {**stored, **found}
        if key != "method" and stored.get(key) != found.get(key)
    ]
    if different:
        raise RunConflict(
            "the run was made from something else than what was loaded now:\n"
            + "\n".join(different)
            + "\nRestore the model or data of the run, or start another run with another --out."
        )
