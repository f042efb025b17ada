"""The clients' shards of the training examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from hiso.data.batches import Shard
from hiso.data.partition import Labelled, partition
from hiso.run.settings import Settings


def divide(
    examples: Sequence[Labelled],
    encoded: Sequence[Any],
    settings: Settings,
    own: tuple[int, ...] | None,
) -> tuple[list[Shard[Any]], str]:
    """Each client's shard of `encoded`, and the fingerprint of the partition.

    Args:
        examples: The training examples; they are divided by their labels or groups.
        encoded: The same examples encoded for the model, in the same order.
        settings: The settings.
        own: The clients that own all of these data; None for all clients.

    Raises:
        SettingsError: No such partition is possible.
    """
    owners = range(settings.clients) if own is None else own
    if len(owners) == 1 and own is not None:
        parts: dict[int, Sequence[int]] = {own[0]: range(len(encoded))}
    else:
        column = [example.group for example in examples]
        found = partition(
            examples,
            len(owners),
            settings.partition,
            alpha=settings.alpha,
            column=column if settings.partition == "column" else None,
            seed=settings.seed,
        )
        parts = dict(zip(owners, found, strict=True))
    shards = [
        Shard(client, [encoded[i] for i in part], settings.batch_size, settings.seed)
        for client, part in parts.items()
    ]
    text = "\n".join(",".join(map(str, part)) for part in parts.values())
    return shards, hashlib.sha256(text.encode()).hexdigest()
