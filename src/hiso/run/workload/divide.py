"""The clients' shards of the training examples."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from hiso.data.batches import Shard
from hiso.data.partition import Labelled, partition
from hiso.run.settings import Settings


def divide(
    examples: Sequence[Labelled], encoded: Sequence[Any], settings: Settings, own: int | None
) -> tuple[list[Shard[Any]], str]:
    """Each client's shard of `encoded`, and the fingerprint of the partition.

    Args:
        examples: The training examples; they are divided by their labels or groups.
        encoded: The same examples encoded for the model, in the same order.
        settings: The settings.
        own: The client that owns all of these data; None to divide them.

    Raises:
        SettingsError: No such partition is possible.
    """
    if own is None:
        column = [example.group for example in examples]
        found = partition(
            examples,
            settings.clients,
            settings.partition,
            alpha=settings.alpha,
            column=column if settings.partition == "column" else None,
            seed=settings.seed,
        )
        parts: dict[int, Sequence[int]] = dict(enumerate(found))
    else:
        parts = {own: range(len(encoded))}
    shards = [
        Shard(client, [encoded[i] for i in part], settings.batch_size, settings.seed)
        for client, part in parts.items()
    ]
    text = "\n".join(",".join(map(str, part)) for part in parts.values())
    return shards, hashlib.sha256(text.encode()).hexdigest()
