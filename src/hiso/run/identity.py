"""The identity of a run. It holds fingerprints, but no paths or names of machines."""

from __future__ import annotations

from dataclasses import replace

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.method.registry import label_bias
from hiso.errors import RunConflict, SettingsError
from hiso.run.settings import Settings

JOINT_DIRECTIONS = "joint_directions"
"""A fact of a simulation: all directions share a pass, which changes the rounding of losses."""


def settings_identity(settings: Settings, method: Method, labels: int) -> Identity:
    """The part of an identity that is known without loading model or data.

    Args:
        settings: The settings.
        method: The method; its label biases are tuned if the settings say so.
        labels: Number of labels of the task; 0 for none.

    Raises:
        SettingsError: The settings ask for label biases, but the task has no labels.
    """
    asked = [name for name in ("label_bias", "logit_adjustment") if getattr(settings, name)]
    if asked and not labels:
        raise SettingsError(f"{', '.join(asked)}: task = {settings.task} has no labels")
    wanted = settings.label_bias and not method.labels
    return Identity(
        method=label_bias(method, labels) if wanted else method,
        seed=settings.seed,
        noise=settings.noise,
        dtype=settings.dtype,
        clients=settings.clients,
        batch_size=settings.batch_size,
        per_client=settings.per_client,
        facts={
            **({"logit_adjustment": True} if settings.logit_adjustment else {}),
            **settings.make_choice().facts,
            **({"frozen": settings.frozen} if settings.frozen != "dtype" else {}),
        },
    )


def deployed(identity: Identity) -> Identity:
    """The identity of the same run on several machines, each with its own private data."""
    data = {"max_length": identity.data["max_length"]}
    facts = {name: fact for name, fact in identity.facts.items() if name != JOINT_DIRECTIONS}
    return replace(identity, data=data, partition=None, joint=None, facts=facts)


def check_identity(stored: Identity, found: Identity) -> None:
    """Checks that model, data and partition are those of the run.

    The values of the method's hyper-parameters are not compared, because they may have changed.

    Args:
        stored: The run's identity. For a deployment it has no fingerprints of data.
        found: The identity of the loaded model and data.

    Raises:
        RunConflict: They differ; the message names the differences.
    """
    if stored.partition is None and found.partition is not None:
        found = deployed(found)
    if type(found.method).name == type(stored.method).name:
        hyper = {**stored.method.hyper, "feed": found.method.feed}
        found = replace(found, method=replace(found.method, **hyper))
    if different := stored.differences(found):
        raise RunConflict(
            "the run was made from something else than what was loaded now (in the run, then "
            "here):\n  "
            + "\n  ".join(different)
            + "\nRestore the model or data of the run, or start another run in another folder."
        )
