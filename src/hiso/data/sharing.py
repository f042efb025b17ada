"""Which rows have text in common, so that no text lands in two splits.

All functions take texts as `words_of` gives them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import lru_cache

Texts = tuple[str, ...]

_WORD = re.compile(r"\w+")
_PHRASE = 2
"""Words that a text must have to count as a part of another. One word is vocabulary: in SST-2,
rows of one word lie in foreign sentences nearly as often as in those that they come from."""


@lru_cache(maxsize=64)  # rows with the same passage often follow one another
def words_of(text: str) -> str:
    """The words of `text` in lower case, a space behind each; punctuation is left out."""
    return "".join(word.casefold() + " " for word in _WORD.findall(text))


def groups(rows: Sequence[Texts]) -> list[list[int]]:
    """The numbers of `rows` in the groups that must stay together.

    Rows with an equal text are in one group, and so are rows that others connect in this way.
    Groups are in order of their first row, and so are the rows of each.
    """
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    first: dict[str, int] = {}
    for row, texts in enumerate(rows):
        for text in texts:
            one, other = sorted((root(row), root(first.setdefault(text, row))))
            parent[other] = one
    found: dict[int, list[int]] = {}
    for row in range(len(rows)):
        found.setdefault(root(row), []).append(row)
    return list(found.values())


def whole(rows: Sequence[Texts], lengths: Sequence[int]) -> list[int]:
    """The numbers of those `rows` whose text does not lie inside that of another row.

    Of rows with the same words only the one that is longest as written is among them, by
    `lengths`, or the first of these. Rows without a text are not.
    """
    longest: dict[str, int] = {}
    for number, texts in enumerate(rows):
        for text in texts:
            if text not in longest or lengths[longest[text]] < lengths[number]:
                longest[text] = number
    inside, _ = nested(longest, longest)
    return sorted(number for text, number in longest.items() if text not in inside)


def touching(rows: Sequence[Texts], kept: Sequence[Texts], *, phrases: bool) -> set[int]:
    """The numbers of those `rows` that have a text in common with one of `kept`.

    Args:
        rows: The rows to look at.
        kept: The rows to compare them with.
        phrases: Whether a text is also in common if it has two words or more and lies, word for
            word, inside the other.
    """
    taken = {text for texts in kept for text in texts}
    if phrases:
        mine = {text for texts in rows for text in texts}
        inside, _ = nested(_phrases(mine), taken)
        _, around = nested(_phrases(taken), mine)
        taken |= inside | around
    return {number for number, texts in enumerate(rows) if not taken.isdisjoint(texts)}


def _phrases(texts: Collection[str]) -> list[str]:
    return [text for text in texts if text.count(" ") >= _PHRASE]


def nested(parts: Collection[str], wholes: Collection[str]) -> tuple[set[str], set[str]]:
    """Which of `parts` lie, word for word, inside one of `wholes`, and which of these hold one.

    A text does not lie inside its equal.
    """
    ordered = sorted({text for text in parts if text})
    shorter: list[int] = []  # where the longest of `ordered` is that this one begins with, or -1
    for number, text in enumerate(ordered):
        at = number - 1
        while at >= 0 and not text.startswith(ordered[at]):
            at = shorter[at]
        shorter.append(at)

    inside, around = set[str](), set[str]()
    for text in set(wholes):
        start = 0
        while start < len(text):
            rest = text[start:]
            at = bisect_right(ordered, rest) - 1
            while at >= 0 and (ordered[at] == text or not rest.startswith(ordered[at])):
                at = shorter[at]
            if at >= 0:
                around.add(text)
            while at >= 0 and ordered[at] not in inside:
                inside.add(ordered[at])
                at = shorter[at]
            start = text.index(" ", start) + 1
    return inside, around
