from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from hiso.data.sharing import groups, nested, touching, whole, words_of

TEXT = st.lists(st.sampled_from("ab"), min_size=1, max_size=6).map(lambda w: words_of(" ".join(w)))
TEXTS = st.lists(TEXT, max_size=12)
ROWS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=2).map(tuple), max_size=12)


def inside(part: str, text: str) -> bool:
    """The definition: the same words one after the other, and more of them."""
    return part != text and f" {part}" in f" {text}"


def test_words_are_compared_without_case_spaces_and_punctuation():
    assert (
        words_of(" It 's\tSCHÖN -- (very)!\n") == words_of("it's schön: very") == "it s schön very "
    )
    assert words_of(" ... ") == ""
    assert words_of("film") != words_of("films")


@given(TEXTS, TEXTS)
def test_nested_finds_each_part_of_a_text(parts, wholes):
    assert nested(parts, wholes) == (
        {part for part in parts if any(inside(part, text) for text in wholes)},
        {text for text in wholes if any(inside(part, text) for part in parts)},
    )


def test_a_part_of_a_word_is_not_a_part():
    texts = [
        words_of(text) for text in ("all movie", "overall movie", "all movies", "in all movie")
    ]
    assert nested(texts, texts) == ({texts[0]}, {texts[3]})


@given(TEXTS, st.randoms(use_true_random=False))
def test_whole_rows_are_parts_of_no_other_and_hold_all_others(texts, random):
    lengths = [random.randrange(3) for _ in texts]
    found = whole([(text,) for text in texts], lengths)
    assert found == sorted(set(found))
    for one, other in combinations(found, 2):
        assert texts[one] != texts[other]
        assert not inside(texts[one], texts[other])
        assert not inside(texts[other], texts[one])
    for number, text in enumerate(texts):
        holders = [i for i in found if texts[i] == text or inside(text, texts[i])]
        assert holders
        if texts[holders[0]] == text:
            assert (lengths[holders[0]], -holders[0]) >= (lengths[number], -number)


def test_a_row_without_words_is_never_whole():
    assert whole([(), ("a ",), ()], [9, 1, 9]) == [1]


@given(ROWS)
def test_groups_are_the_smallest_that_share_nothing(rows):
    found = groups(rows)
    assert sorted(i for group in found for i in group) == list(range(len(rows)))
    assert found == sorted(map(sorted, found))
    for one, other in combinations(found, 2):
        assert not {t for i in one for t in rows[i]} & {t for i in other for t in rows[i]}
    for group in found:
        reached = {group[0]}
        for _ in group:
            reached |= {i for i in group for j in reached if set(rows[i]) & set(rows[j])}
        assert reached == set(group)


@given(ROWS, ROWS)
def test_touching_rows_have_an_equal_text(rows, kept):
    taken = {text for texts in kept for text in texts}
    expected = {i for i, texts in enumerate(rows) if taken & set(texts)}
    assert touching(rows, kept, phrases=False) == expected


@given(TEXTS, TEXTS)
def test_touching_phrases_have_two_words_or_are_equal(rows, kept):
    def touch(one, other):
        long = one.count(" ") > 1 and other.count(" ") > 1
        return one == other or (long and (inside(one, other) or inside(other, one)))

    found = touching([(text,) for text in rows], [(text,) for text in kept], phrases=True)
    assert found == {i for i, one in enumerate(rows) if any(touch(one, other) for other in kept)}
