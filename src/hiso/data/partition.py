"""Dividing training examples among clients."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from typing import Literal, Protocol

import numpy as np

from hiso.core.keys import permutation, raw_bits
from hiso.errors import SettingsError

Scheme = Literal["iid", "dirichlet", "column"]


class Labelled(Protocol):
    """The part of an example that a partition needs."""

    @property
    def label(self) -> int | None:
        """Number of its label."""
        ...

    @property
    def group(self) -> str | None:
        """Value of the column by which examples are partitioned."""
        ...


def partition(
    examples: Sequence[Labelled],
    clients: int,
    scheme: Scheme,
    *,
    alpha: float,
    column: Sequence[str | None] | None,
    seed: int,
) -> list[list[int]]:
    """Assigns each example to exactly one client; every client gets at least one example.

    Args:
        examples: The training examples.
        clients: Number of clients.
        scheme: "iid": shuffled and divided evenly. "dirichlet": each label's examples are divided
            by proportions drawn from a symmetric Dirichlet distribution. "column": each client
            gets all examples with one value of a column; clients are numbered in the order of the
            sorted values.
        alpha: Concentration for "dirichlet": the smaller, the more clients differ.
        column: One value per example for "column".
        seed: The partition is a pure function of the arguments; "dirichlet" also depends on
            NumPy's Dirichlet generator, which may change with its version.

    Returns:
        Ascending indices into `examples` for each client.

    Raises:
        SettingsError: No such partition is possible.
    """
    _check(examples, clients, scheme, alpha, column)
    if scheme == "iid":
        order = permutation(seed, "partition", size=len(examples))
        return [sorted(part.tolist()) for part in np.array_split(order, clients)]
    if scheme == "dirichlet":
        return _dirichlet([str(example.label) for example in examples], clients, alpha, seed)
    rows: dict[str | None, list[int]] = {value: [] for value in sorted(set(column or ()), key=str)}
    for row, value in enumerate(column or ()):
        rows[value].append(row)
    return list(rows.values())


def _dirichlet(labels: list[str], clients: int, alpha: float, seed: int) -> list[list[int]]:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    partitioner = DirichletPartitioner(
        num_partitions=clients,
        partition_by="key",
        alpha=float(alpha),
        min_partition_size=1,
        seed=int(raw_bits(seed, "partition", (), 1)[0]),
    )
    partitioner.dataset = Dataset.from_dict({"key": labels, "index": list(range(len(labels)))})
    try:
        # Hides the partitioner's progress bars, and its warnings about repeated attempts.
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shards = [partitioner.load_partition(client)["index"] for client in range(clients)]
    except ValueError as error:
        raise SettingsError(
            f"a Dirichlet partition of {len(labels):,} examples with alpha {alpha} leaves some "
            f"of {clients:,} clients without examples. Raise alpha, use fewer clients, or use the "
            "scheme iid."
        ) from error
    return [sorted(shard) for shard in shards]


def _check(
    examples: Sequence[Labelled],
    clients: int,
    scheme: str,
    alpha: float,
    column: Sequence[str | None] | None,
) -> None:
    problems: list[str] = []
    if clients < 1:
        problems.append(f"there are {clients} clients: 1 or more are needed.")
    if clients > len(examples):
        problems.append(
            f"there are {clients:,} clients for {len(examples):,} examples: use fewer clients or "
            "more data."
        )
    if scheme not in ("iid", "dirichlet", "column"):
        problems.append(f"there is no scheme '{scheme}': use iid, dirichlet or column.")
    if scheme == "dirichlet" and not 0 < alpha < float("inf"):
        problems.append(f"alpha is {alpha}: it must be a positive number.")
    if scheme == "dirichlet" and any(example.label is None for example in examples):
        problems.append("the examples have no labels to divide by: use the scheme iid or column.")
    if scheme == "column":
        if column is None or len(column) != len(examples) or None in column:
            problems.append("the scheme column needs a column with a value for every example.")
        elif len(set(column)) != clients:
            problems.append(
                f"the column has {len(set(column)):,} different values, each of which is one "
                f"client: set clients to {len(set(column)):,}."
            )
    if problems:
        raise SettingsError("\n".join(problems))
