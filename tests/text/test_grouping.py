"""Groups of like length, against all ways to cut."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from hiso.workloads.text.grouping import CALL, group_by_length


def cost(groups: list[list[int]], lengths: list[int]) -> int:
    return sum(CALL + len(g) * max(lengths[i] for i in g) for g in groups)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9))
def test_no_way_to_cut_the_sorted_sequences_costs_less(lengths):
    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    ways = [
        [order[a:b] for a, b in zip((0, *cuts), (*cuts, len(order)), strict=True)]
        for count in range(len(order))
        for cuts in combinations(range(1, len(order)), count)
    ]
    assert cost(groups, lengths) == min(cost(way, lengths) for way in ways)


def test_groups_depend_on_lengths_alone():
    assert group_by_length([5, 5, 5]) == [[0, 1, 2]]
    assert group_by_length([10, 100, 10, 100]) == [[1, 3], [0, 2]]
    assert group_by_length([10, 12, 11]) == [[1, 2, 0]]
