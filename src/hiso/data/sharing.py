"""Finds rows that have text in common, so that no text is put into two splits.

All functions take texts in the form that `words_of` returns.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from functools import lru_cache

Texts = tuple[str, ...]

_WORD = re.compile(r"\w+")
_PHRASE = 2
"""Smallest number of words of a text that counts as part of another text. Single words are too
common: in SST-2, rows of one word occur in unrelated sentences nearly as often as in the sentences
from which they were taken."""


@lru_cache(maxsize=64)  # rows with the same passage often follow one another
def words_of(text: str) -> str:
    """The words of `text` in lower case, each followed by a space, without punctuation."""
    return "".join(word.casefold() + " " for word in _WORD.findall(text))


def groups(rows: Sequence[Texts]) -> list[list[int]]:
    """Groups of row numbers; the rows of a group must stay in one split.

    Rows with an equal text are in one group, and so are rows that are connected through other
    rows. Groups are ordered by their first row, and rows within a group are in ascending order.
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
    """The numbers of the `rows` whose text is not part of the text of another row.

    Of several rows with the same words, only the longest by `lengths` is included, or the first of
    the longest ones. Rows without a text are not included.
    """
    longest: dict[str, int] = {}
    for number, texts in enumerate(rows):
        for text in texts:
            if text not in longest or lengths[longest[text]] < lengths[number]:
                longest[text] = number
    inside, _ = nested(longest, longest)
    return sorted(number for text, number in longest.items() if text not in inside)


def touching(rows: Sequence[Texts], kept: Sequence[Texts], *, phrases: bool) -> set[int]:
    """The numbers of the `rows` that have a text in common with one of `kept`.

    Args:
        rows: The rows to test.
        kept: The rows to compare them with.
        phrases: Whether a text of two words or more is also in common if it is part of the other
            text, word for word.
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
    """The `parts` that are contained, word for word, in one of `wholes`; and the `wholes` that
    contain one.

    A text is not contained in an equal text.
    """
    ordered = sorted({text for text in parts if text})
    shorter: list[int] = []  # index in `ordered` of this text's longest prefix, or -1
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
