"""Loads the workload named by the settings."""

from __future__ import annotations

from hiso.core.method.base import Method
from hiso.errors import SettingsError
from hiso.run.observer import Observer
from hiso.run.settings import Settings
from hiso.run.workload.base import Workload
from hiso.run.workload.objects import NOTHING, Objects
from hiso.run.workload.text import load_words
from hiso.run.workload.vision import load_images
from hiso.workloads.vision.images import DATA_SETS


def load_workload(
    settings: Settings,
    method: Method,
    observer: Observer,
    *,
    own: tuple[int, ...] | None = None,
    objects: Objects = NOTHING,
) -> Workload:
    """Loads model and data.

    Args:
        settings: The settings.
        method: The method.
        observer: Receives the progress.
        own: The clients that own all of the data; by default all clients do.
        objects: The user's own objects, which replace those named by the settings.

    Raises:
        LoadError: Something cannot be loaded, or an object is missing.
        SettingsError: No such partition is possible, or `max_length` is too short; or there is no
            such device.
    """
    objects.check(settings)
    if settings.task in DATA_SETS:
        if settings.task_definition is not None:
            raise SettingsError(
                f"task = {settings.task} is a task with images: give your own task another name"
            )
        if not settings.make_choice().full:
            raise SettingsError(
                f"train = {settings.train}: networks on images are small, and trained in full"
            )
        if settings.prompt_style == "chat":
            raise SettingsError(f"prompt_style = chat: task = {settings.task} has no prompts")
        if objects.settings:
            raise SettingsError(
                f"task = {settings.task} takes model and data by their names, no objects: "
                "hiso.Federation takes any module and any data"
            )

        return load_images(settings, method, observer, own)
    return load_words(settings, method, observer, own, objects)
