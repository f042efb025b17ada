import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.workloads.text.scores import SCORES, exact_match, f1, normalise, rouge_words, score

WORDS = [
    "the",
    "a",
    "an",
    "cat",
    "Cat",
    "sat",
    "on",
    "mat",
    "mats",
    "3.5",
    "U.S.",
    "it's",
    "-",
    "é",
]
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) | st.text(max_size=12)
names = st.sampled_from(sorted(SCORES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel Tower.", "eiffel tower"),
        ("an apple, a pear & THE plum!", "apple pear plum"),
        ("theatre and another", "theatre and another"),  # articles are whole words
        ("U.S. $3.50", "us 350"),
        ("well-known\tfact\n", "wellknown fact"),
        ("a-b", "ab"),  # punctuation goes before articles
        ("“Straße”", "“straße”"),  # only ASCII punctuation
        ("the", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_for_squad(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Denver Broncos", "The Denver Broncos.", 1.0),
        ("the Denver Broncos team", "Denver Broncos", 2 * 2 / (3 + 2)),
        ("Broncos", "Denver Broncos", 2 * 1 / (1 + 2)),
        ("in 1990 in Paris", "in Paris in Paris", 2 * 3 / (4 + 4)),  # in twice, Paris once
        ("to to to to", "to be", 2 * 1 / (4 + 2)),
        ("Carolina", "Denver", 0.0),
        ("", "Denver", 0.0),
        ("the", "a", 1.0),
    ],
)
def test_f1_by_hand(answer, gold, expected):
    assert f1(answer, gold) == pytest.approx(expected)
    assert exact_match(answer, gold) == (expected == 1.0)


def test_words_in_another_order_are_no_exact_match():
    assert (f1("Broncos Denver", "Denver Broncos"), exact_match("Broncos Denver", "x")) == (1, 0)
    assert exact_match("Broncos Denver", "Denver Broncos") == 0


GOLD = (
    "Clean-up operations are continuing across the Scottish Borders and Dumfries and Galloway "
    "after flooding caused by Storm Frank."
)
WRITTEN = (
    "Flooding in the Scottish Borders: clean-up continues after Storm Frank caused floods in "
    "Dumfries."
)


@pytest.mark.parametrize(
    ("answer", "gold", "one", "two", "longest"),
    [
        # 11 common ones of 15 and 19 words; 4 of 14 and 18 pairs; the scottish borders after …
        (WRITTEN, GOLD, 22 / 34, 8 / 32, 12 / 34),
        ("the cat sat", "the cat sat", 1, 1, 1),
        ("sat the cat", "the cat sat", 1, 2 * 1 / 4, 2 * 2 / 6),
        ("cats", "cat", 0, 0, 0),  # not stemmed
        ("3.5 per cent", "3 5", 4 / 6, 2 / 4, 4 / 6),  # four words against two
        ("cat", "cat", 1, 0, 1),  # there is no pair of words
        ("é!", "é!", 0, 0, 0),  # and here no word
    ],
)
def test_rouge_by_hand(answer, gold, one, two, longest):
    found = {name: SCORES[name](answer, gold) for name in ("rouge1", "rouge2", "rougeL")}
    assert found == pytest.approx({"rouge1": one, "rouge2": two, "rougeL": longest})


def test_rouge_is_that_of_the_package_rouge_score():
    """The figures are those of rouge-score 0.1.2, without stemming."""
    found = [SCORES[name](WRITTEN, GOLD) for name in ("rouge1", "rouge2", "rougeL")]
    assert found == pytest.approx([0.6470588235294117, 0.25, 0.35294117647058826], abs=1e-15)


@given(names, texts, texts)
def test_scores_are_symmetric_and_lie_between_0_and_1(name, answer, gold):
    value = SCORES[name](answer, gold)
    assert 0 <= value <= 1
    assert value == SCORES[name](gold, answer)


@given(texts, texts)
def test_an_exact_match_has_an_f1_of_1_and_nothing_in_common_one_of_0(answer, gold):
    left, right = normalise(answer).split(), normalise(gold).split()
    assert (f1(answer, gold) == 1) == (sorted(left) == sorted(right))
    assert (f1(answer, gold) == 0) == (not set(left) & set(right) and bool(left or right))
    if exact_match(answer, gold):
        assert f1(answer, gold) == 1


@given(texts)
def test_an_answer_is_wholly_like_itself(text):
    words = len(rouge_words(text))
    assert f1(text, text) == exact_match(text, text) == 1
    for name, least in {"rouge1": 1, "rouge2": 2, "rougeL": 1}.items():
        assert SCORES[name](text, text) == (words >= least)


def longest_by_recursion(left, right):
    if not left or not right:
        return 0
    if left[0] == right[0]:
        return 1 + longest_by_recursion(left[1:], right[1:])
    return max(longest_by_recursion(left[1:], right), longest_by_recursion(left, right[1:]))


@given(*[st.lists(st.sampled_from("abc"), max_size=6)] * 2)
def test_the_longest_common_subsequence_is_found(left, right):
    total = len(left) + len(right)
    expected = 2 * longest_by_recursion(left, right) / total if total else 0
    assert SCORES["rougeL"](" ".join(left), " ".join(right)) == pytest.approx(expected)


@given(texts, st.lists(texts, min_size=1, max_size=4), names)
def test_the_best_of_several_right_answers_counts(answer, golds, name):
    best = max(SCORES[name](answer, gold) for gold in golds)
    assert score([name], [answer], [golds]) == {name: best}


def test_scores_are_means_over_examples():
    found = score(["f1", "exact_match"], ["the cat", "dog"], [["x", "cat"], ["hot dog", "a fox"]])
    assert found == pytest.approx({"f1": (1 + 2 / 3) / 2, "exact_match": 0.5})
