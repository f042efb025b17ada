"""Groups sequences for joint forward passes, so that little time is spent on padding."""

from __future__ import annotations

from collections.abc import Sequence

CALL = 40
"""The cost of one more call of the model, in tokens: all weights are read once more. Measured with
SmolLM2-135M on a CPU, where a token takes 2.1 ms of a core and an empty call 80 ms."""


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Divides sequences into groups; each group is padded to its longest sequence.

    Minimises Σ over groups of (`CALL` + size · longest) exactly: in the best solution the groups
    are intervals of the sequences ordered by length, and equal lengths are in one group.

    Returns:
        The numbers of the sequences by group, longest first; equal lengths keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    starts = [n for n, i in enumerate(order) if n == 0 or lengths[i] != lengths[order[n - 1]]]
    cost, following = {len(order): 0}, dict[int, int]()
    for n in reversed(starts):
        ends = [m for m in cost if m > n]
        cost[n], following[n] = min((CALL + (m - n) * lengths[order[n]] + cost[m], m) for m in ends)
    groups: list[list[int]] = []
    at = 0
    while at < len(order):
        groups.append(order[at : following[at]])
        at = following[at]
    return groups
