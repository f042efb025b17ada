"""Data sets of small images by name, and their splits.

The splits depend on the data alone, never on a run's seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiso.core.keys import permutation
from hiso.errors import LoadError

_SPLIT_KEY = 0


@dataclass(frozen=True)
class DataSet:
    """A Hugging Face data set: its id, and the names of its columns."""

    id: str
    image: str = "image"
    label: str = "label"


DATA_SETS: dict[str, DataSet | None] = {
    "digits": None,  # comes with scikit-learn
    "mnist": DataSet("ylecun/mnist"),
    "fashion_mnist": DataSet("zalando-datasets/fashion_mnist"),
    "cifar10": DataSet("uoft-cs/cifar10", image="img"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """One image.

    Attributes:
        pixels: float32 [channels, height, width] in [0, 1].
        label: Its class, from 0.
        group: None, because images are not partitioned by a column.
    """

    pixels: Tensor
    label: int
    group: str | None = None


@dataclass(frozen=True)
class ImageSplits:
    """Training, tuning and test images; like `Splits` for text."""

    train: list[Image]
    dev: list[Image]
    test: list[Image]
    classes: int
    source: str
    fingerprint: str


def load_data_set(name: str, data: str | None = None) -> ImageSplits:
    """The images of a data set.

    A tenth of the training images becomes the tuning split. For `digits` (1,797 images of 8×8,
    without splits), a fifth first becomes the test split.

    Args:
        name: One of `DATA_SETS`.
        data: Another Hugging Face id, or a local folder that `datasets` can read, with the columns
            of the named data set.

    Raises:
        LoadError: The data or their package are missing, or the data lack a column or split.
    """
    known = DATA_SETS[name]
    if known is None:
        if data is not None:
            raise LoadError("digits come with scikit-learn: omit data")
        images = _digits()
        order = permutation(_SPLIT_KEY, "split", size=len(images)).tolist()
        fifth = len(images) // 5
        test, rest = [images[i] for i in order[:fifth]], [images[i] for i in order[fifth:]]
        return _splits(rest, test, "scikit-learn, digits, a fifth for reporting")
    found = _hub(data or known.id, known)
    return _splits(*found, f"Hugging Face, {data or known.id}")


def _digits() -> list[Image]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise LoadError("digits come with scikit-learn: pip install 'hiso[vision]'") from error
    loaded: Any = load_digits()
    return _images((loaded.images / 16)[..., None], loaded.target)


def _hub(place: str, known: DataSet) -> tuple[list[Image], list[Image]]:
    import datasets

    try:
        loaded = datasets.load_dataset(place)
    except Exception as error:  # datasets raises unrelated exception types
        raise LoadError(
            f"cannot load the data set {place}: {str(error).strip()} Check the name and the "
            "connection, or save it elsewhere and name its folder as `data`."
        ) from error
    found: list[list[Image]] = []
    for split in ("train", "test"):
        if split not in loaded:
            known_splits = ", ".join(map(str, loaded))
            raise LoadError(f"{place} has no split '{split}'; it has: {known_splits}.")
        rows = loaded[split]
        if missing := {known.image, known.label} - set(rows.column_names):
            raise LoadError(
                f"{place} has no column {', '.join(sorted(missing))} in split '{split}'; it has: "
                f"{', '.join(rows.column_names)}."
            )
        pixels = np.stack([np.asarray(image) for image in rows[known.image]]) / 255
        shaped = pixels if pixels.ndim == 4 else pixels[..., None]
        found.append(_images(shaped, np.asarray(rows[known.label])))
    return found[0], found[1]


def _images(pixels: Any, labels: Any) -> list[Image]:
    """Images from arrays [N, height, width, channels] in [0, 1] and [N]."""
    tensor = torch.from_numpy(np.moveaxis(pixels, -1, 1).astype(np.float32))
    return [Image(image, int(label)) for image, label in zip(tensor, labels, strict=True)]


def _splits(train: Sequence[Image], test: list[Image], source: str) -> ImageSplits:
    order = permutation(_SPLIT_KEY, "dev", size=len(train)).tolist()
    tenth = max(1, len(train) // 10)
    dev = [train[i] for i in sorted(order[:tenth])]
    rest = [train[i] for i in sorted(order[tenth:])]
    digest = hashlib.sha256()
    for images in (rest, dev, test):
        digest.update(b"split %d\n" % len(images))
        for image in images:
            digest.update(image.pixels.numpy().tobytes() + b"%d\n" % image.label)
    classes = 1 + max(image.label for images in (rest, dev, test) for image in images)
    return ImageSplits(rest, dev, test, classes, source, digest.hexdigest())
