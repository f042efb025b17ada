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
    """Each client's shard of `encoded`, and the fingerprint of who holds what.

    Args:
        examples: The training examples, by whose labels or groups they are divided.
        encoded: The same as the model sees them, in the same order.
        settings: The settings.
        own: The client whose data these are, all of them; None to divide them.

    Raises:
        SettingsError: The data allow no such partition.
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
