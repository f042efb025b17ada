"""A workload of images: a small network on a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.data.batches import Shard
from hiso.run.identity import settings_identity
from hiso.run.observer import Advance, Observer
from hiso.run.settings import Settings
from hiso.run.workload.base import Rows, device_of, some
from hiso.run.workload.divide import divide
from hiso.workloads.vision.images import Image, ImageSplits, load_data_set
from hiso.workloads.vision.models import fingerprint, make_network
from hiso.workloads.vision.objective import ImageObjective


@dataclass(frozen=True)
class Images:
    """A `Workload` with a network for images."""

    module: nn.Module
    labels: int
    shards: list[Shard[Image]]
    dev: Sequence[Image]
    test: Sequence[Image]
    source: str
    identity: Identity

    def objective(self, rows: Rows, *, joint: bool) -> ImageObjective:
        """See `Workload.objective`; the whole network computes in the replica's dtype."""
        del rows
        return ImageObjective(self.module, joint=joint)

    def evaluate(
        self,
        objective: ImageObjective,
        examples: Sequence[Image],
        biases: NDArray[np.float64] | None,
        advance: Advance,
    ) -> dict[str, float]:
        """See `Workload.evaluate`."""
        return objective.evaluate(examples, advance, biases)


def load_images(
    settings: Settings, method: Method, observer: Observer, own: tuple[int, ...] | None
) -> Images:
    """See `hiso.run.workload.load.load_workload`."""
    with observer.phase(f"loading data for {settings.task}"):
        splits = load_data_set(settings.task, settings.data)
    module = _network(settings, splits)
    module.to(device_of(settings))
    shards, partition = divide(splits.train, splits.train, settings, own)
    identity = replace(
        settings_identity(settings, method, splits.classes),
        model={"fingerprint": fingerprint(module)},
        task={"name": settings.task},
        data={"fingerprint": splits.fingerprint, "max_length": settings.max_length},
        partition=partition,
        joint=settings.joint,
    )
    dev = some(splits.dev, settings.dev_examples)
    test = some(splits.test, settings.test_examples)
    return Images(module, splits.classes, shards, dev, test, splits.source, identity)


def load_network(settings: Settings) -> nn.Module:
    """Only the base network, on the CPU, with the input size of the images.

    Raises:
        LoadError: There is no such network or data set.
    """
    return _network(settings, load_data_set(settings.task, settings.data))


def _network(settings: Settings, splits: ImageSplits) -> nn.Module:
    shape = tuple(splits.train[0].pixels.shape)
    return make_network(settings.model, shape, splits.classes, settings.seed)
