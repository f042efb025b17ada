"""What makes a run this run. Paths and names of machines are not in it, fingerprints are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiso.core import record
from hiso.core.method import Method
from hiso.core.noise import NOISE_FORMAT
from hiso.errors import RunConflict
from hiso.run.settings import Settings

_OF_ONE_PLACE = ("partition", "joint")


def settings_identity(settings: Settings, method: Method) -> dict[str, Any]:
    """The part of an identity that is known without loading model or data."""
    return {
        "formats": {"record": record.FORMAT, "noise": NOISE_FORMAT},
        "method": {"name": method.name, "hyper": method.hyper, "feed": method.feed},
        "noise": settings.noise,
        "seed": settings.seed,
        "clients": settings.clients,
        "batch_size": settings.batch_size,
        "directions": settings.directions,
        "dtype": settings.dtype,
    }


def deployed(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of the same run on many machines, each with data that nobody else knows."""
    common = {key: value for key, value in identity.items() if key not in _OF_ONE_PLACE}
    return {**common, "data": {"max_length": identity["data"]["max_length"]}}


def check_identity(stored: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Makes sure that model, data and partition are those that the run was made with.

    Of the method, the values of hyper-parameters are left out: they may have changed.

    Args:
        stored: The run's identity. Of a deployment, it says nothing of anybody's data.
        found: That of what was loaded here.

    Raises:
        RunConflict: Something is not; names what.
    """
    if "partition" not in stored and "partition" in found:
        found = deployed(found)
    stored, found = _without_hyper(stored), _without_hyper(found)
    different = [
        f"  {key}: {stored.get(key)} in the run, {found.get(key)} here"
        for key in {**stored, **found}
        if stored.get(key) != found.get(key)
    ]
    if different:
        raise RunConflict(
            "the run was made from something else than what was loaded now:\n"
            + "\n".join(different)
            + "\nRestore the model or data of the run, or start another run with another --out."
        )


def _without_hyper(identity: Mapping[str, Any]) -> dict[str, Any]:
    method = identity.get("method")
    known = (method.get("name"), method.get("feed")) if isinstance(method, dict) else method
    return {**identity, "method": known}
