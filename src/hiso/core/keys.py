"""Random numbers other than directions: batches, sampling, splits, each with a separate key.

Every draw is a pure function of (seed, domain, coordinates). Only NumPy's raw Philox bits are
used, whose stream NumPy guarantees; its distributions may change between versions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def raw_bits(seed: int, domain: str, coordinates: Sequence[int], count: int) -> NDArray[np.uint64]:
    """`count` independent 64-bit words for (`seed`, `domain`, `coordinates`).

    Raises:
        ValueError: The domain has a slash, which separates the parts of a key.
    """
    if "/" in domain:
        raise ValueError(f"domain {domain!r} must not contain a slash")
    text = "/".join([domain, str(seed), *map(str, coordinates)])
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"hiso-keys").digest()
    key = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def secret_seed(key: bytes, run: str) -> int:
    """The seed of a run's batches at a site that draws them with a key of its own."""
    digest = hashlib.blake2b(run.encode(), key=key, digest_size=32, person=b"hiso-batches")
    return int.from_bytes(digest.digest())


def secret_mark(key: bytes, fingerprint: str) -> str:
    """A hash of data with the key of a site, 32 hex digits: without the key nobody can test a guess
    of the data.
    """
    digest = hashlib.blake2b(fingerprint.encode(), key=key, digest_size=16, person=b"hiso-data")
    return digest.hexdigest()


def permutation(seed: int, domain: str, *coordinates: int, size: int) -> NDArray[np.int64]:
    """A uniform permutation of `range(size)`, int64."""
    return np.argsort(raw_bits(seed, domain, coordinates, size), kind="stable")


def choose(seed: int, domain: str, *coordinates: int, size: int, count: int) -> list[int]:
    """`count` distinct members of `range(size)`, in ascending order."""
    if not 0 <= count <= size:
        raise ValueError(f"cannot choose {count} of {size}")
    return sorted(permutation(seed, domain, *coordinates, size=size)[:count].tolist())


def batch_rows(
    seed: int, client: int, round: int, step: int, *, size: int, batch_size: int
) -> list[int]:
    """Ascending indices of a client's batch: min(batch_size, size) of its `size` examples."""
    count = min(batch_size, size)
    return choose(seed, "batch", client, round, step, size=size, count=count)
