"""How long a round waits for those who have not answered."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.flower.waiting import FACTOR, LEAST, ROUNDS, Waiting, patience

TIMES = st.lists(st.floats(0, 1e4), min_size=1, max_size=30)


@given(TIMES, st.floats(0, 1e9))
def test_one_reply_time_of_three_moves_the_wait_no_further_than_the_others(times, odd):
    honest = sorted(times * 2)
    assert (
        LEAST <= patience(median([*honest, odd]), 600) <= max(LEAST, min(600, FACTOR * honest[-1]))
    )


@pytest.mark.parametrize(
    ("times", "seconds"), [([1.0], LEAST), ([20.0, 30.0, 1e9], 90), ([500.0], 600), ([0.0], LEAST)]
)
def test_the_wait_is_three_medians_within_bounds(times, seconds):
    assert patience(median(times), 600) == seconds
    assert patience(median(times), 5) == 5


def test_the_first_round_waits_as_long_as_allowed_and_later_ones_look_back():
    waiting = Waiting(600)
    waiting.begin()
    for _ in range(3):
        waiting.accepted(10)
        assert waiting.seconds == 600
    waiting.begin()
    assert waiting.seconds == 30
    for _ in range(5):
        waiting.accepted(40)  # this round is slower than the first
    assert waiting.seconds == 120
    for _ in range(ROUNDS + 1):
        waiting.begin()
        waiting.accepted(5)
    assert waiting.seconds == 15


def test_a_round_without_replies_is_no_history():
    waiting = Waiting(600)
    for _ in range(3):
        waiting.begin()
    assert waiting.seconds == 600


@given(st.lists(TIMES, min_size=2, max_size=5))
def test_the_usual_time_is_the_median_of_all(rounds):
    waiting = Waiting(1e9)
    for times in rounds:
        waiting.begin()
        for seconds in times:
            waiting.accepted(seconds)
    assert waiting.seconds == patience(median(t for times in rounds for t in times), 1e9)
