"""Texts for people, and what they may write."""

from __future__ import annotations

import pytest

from hiso.errors import SettingsError
from hiso.run.formatting import client_numbers, named


@pytest.mark.parametrize(
    ("text", "numbers"), [("3", [3]), ("0-2", [0, 1, 2]), ("7, 2-3,2", [2, 3, 7]), ("9-9", [9])]
)
def test_numbers_of_clients(text, numbers):
    assert client_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "-1", "3-2", "1,,2", "1-2-3", "1.5", "1234567890"])
def test_texts_that_are_no_numbers(text):
    with pytest.raises(SettingsError):
        client_numbers(text)


def test_at_most_ten_are_named():
    assert named([3]) == "client 3"
    assert named(range(10)) == "clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert named(range(1000)).endswith("8, 9 and 990 more")
