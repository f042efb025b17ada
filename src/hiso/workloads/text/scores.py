"""Scores of written answers: F1 and exact match as for SQuAD, and ROUGE.

Every score is between 0 and 1. If there are several right answers, the best score counts.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def score(
    names: Sequence[str], written: Sequence[str], golds: Sequence[Sequence[str]]
) -> dict[str, float]:
    """The mean of each of the scores `names` over examples.

    Args:
        names: From `SCORES`.
        written: The model's answer to each example.
        golds: The right answers of each example, at least one.
    """
    pairs = list(zip(written, golds, strict=True))
    return {
        name: math.fsum(
            max(SCORES[name](answer, gold) for gold in right) for answer, right in pairs
        )
        / len(pairs)
        for name in names
    }


def normalise(text: str) -> str:
    """The text in lower case, without ASCII punctuation and English articles, as for SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: str) -> float:
    """1 if both are equal after `normalise`, else 0 (Rajpurkar et al. 2016, section 6.1)."""
    return float(normalise(answer) == normalise(gold))


def f1(answer: str, gold: str) -> float:
    """Token overlap after `normalise` (Rajpurkar et al. 2016, section 6.1).

    F1 = 2 · common / (|answer| + |gold|), with common = Σ over tokens of the smaller count. For two
    empty texts F1 is 1, as in SQuAD 2.0.
    """
    return _overlap(normalise(answer).split(), normalise(gold).split())


def rouge_n(n: int) -> Callable[[str, str], float]:
    """ROUGE-N: F1 of the overlap of n-grams (Lin 2004, section 2). See `rouge_words`."""

    def rouge(answer: str, gold: str) -> float:
        pair = [rouge_words(text) for text in (answer, gold)]
        grams = [list(zip(*(words[i:] for i in range(n)), strict=False)) for words in pair]
        return _overlap(*grams) if any(grams) else 0.0

    return rouge


def rouge_l(answer: str, gold: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of words (Lin 2004, section 3.1).

    F1 = 2 · LCS / (|answer| + |gold|), with the whole text as one sentence. See `rouge_words`.
    """
    left, right = rouge_words(answer), rouge_words(gold)
    longest = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for j, other in enumerate(right, start=1):
            above = longest[j]
            longest[j] = diagonal + 1 if word == other else max(above, longest[j - 1])
            diagonal = above
    return 2 * longest[-1] / (len(left) + len(right)) if left or right else 0.0


def rouge_words(text: str) -> list[str]:
    """The words for ROUGE: sequences of a–z and 0–9 in lower case, not stemmed."""
    return re.findall(r"[a-z0-9]+", text.lower())


def _overlap(left: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    if not left and not right:
        return 1.0
    return 2 * (Counter(left) & Counter(right)).total() / (len(left) + len(right))


SCORES: dict[str, Callable[[str, str], float]] = {
    "f1": f1,
    "exact_match": exact_match,
    "rouge1": rouge_n(1),
    "rouge2": rouge_n(2),
    "rougeL": rouge_l,
}
