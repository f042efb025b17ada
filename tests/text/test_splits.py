"""What rows share stays in one split, and where nothing is shared all is as in version 0.1."""

import dataclasses
import json
import random
from collections import Counter

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from hiso.errors import LoadError
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.tasks import TASKS, get_task

SST2, QQP, BOOLQ, SQUAD = map(get_task, ("sst2", "qqp", "boolq", "squad"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load_if_enough(task, folder):
    """The examples; rows too few for three splits are no case to test."""
    try:
        return load_examples(task, str(folder))
    except LoadError as error:
        if "nothing is left" not in str(error):
            raise
        reject()


def as_before(task):
    """The task as it was when rows were carved one by one."""
    return dataclasses.replace(task, shared=(), phrases=False)


def parts(splits):
    return splits.train, splits.dev, splits.test


def common(splits, of):
    """How many examples of dev and of test have what `of` gives in common with training."""
    train = {of(example) for example in splits.train}
    return [sum(of(example) in train for example in part) for part in (splits.dev, splits.test)]


def passage(example):
    return example.prompt.partition("\n")[0]


def questions(count, passages):
    return [
        {"passage": f"Passage {i % passages} .", "question": f"is it {i}", "label": i % 2}
        for i in range(count)
    ]


def test_questions_about_one_passage_stay_together(tmp_path):
    path = write(tmp_path / "a.jsonl", questions(600, passages=120))
    leaking = common(load_examples(as_before(BOOLQ), str(path)), passage)
    assert min(leaking) > 50
    splits = load_examples(BOOLQ, str(path))
    assert common(splits, passage) == [0, 0]
    assert not set(map(passage, splits.dev)) & set(map(passage, splits.test))
    assert [len(part) for part in parts(splits)] == [480, 60, 60]
    for part in parts(splits):
        assert set(Counter(map(passage, part)).values()) == {5}
        assert [e.prompt for e in part] == sorted(
            (e.prompt for e in part), key=lambda text: int(text.split()[-2][:-1])
        )


def test_passages_written_differently_are_the_same(tmp_path):
    rows = [
        {
            "context": (f"Text {i} says it." if n else f" text  {i} -- says it"),
            "question": f"what {n}?",
            "answer": "it",
        }
        for i in range(60)
        for n in range(2)
    ]
    path = write(tmp_path / "a.jsonl", rows)

    def number(example):
        return example.prompt.split()[1]

    assert min(common(load_examples(as_before(SQUAD), str(path)), number)) > 3
    assert common(load_examples(SQUAD, str(path)), number) == [0, 0]


def test_what_the_reporting_split_has_is_neither_trained_nor_tuned_on(tmp_path):
    write(tmp_path / "train.jsonl", questions(400, passages=80))
    test = [row | {"question": "another"} for row in questions(8, passages=8)]
    write(tmp_path / "validation.jsonl", test)
    splits = load_examples(BOOLQ, str(tmp_path))
    assert len(splits.test) == 8
    assert common(splits, passage) == [0, 0]
    assert not set(map(passage, splits.dev)) & set(map(passage, splits.test))
    assert len(splits.dev) == 40
    assert len(splits.train) == 400 - 40 - 8 * 5
    assert "(40 rows with text of another split removed)" in splits.source


def test_a_passage_larger_than_a_split_is_trained_on(tmp_path):
    rows = [*questions(500, passages=1), *questions(1000, passages=1000)[500:]]
    splits = load_examples(BOOLQ, str(write(tmp_path / "a.jsonl", rows)))
    assert [len(part) for part in parts(splits)] == [800, 100, 100]
    assert Counter(map(passage, splits.train))["Passage 0 ."] == 500


def test_three_passages_are_enough_and_two_are_not(tmp_path):
    splits = load_examples(BOOLQ, str(write(tmp_path / "a.jsonl", questions(90, passages=3))))
    assert [len(part) for part in parts(splits)] == [30, 30, 30]
    path = write(tmp_path / "b.jsonl", questions(90, passages=2))
    with pytest.raises(
        LoadError, match="3 different rows at the very least, which share no passage"
    ):
        load_examples(BOOLQ, str(path))


WORD = st.sampled_from("abcdefghijklmn")


@st.composite
def pairs(draw):
    """Rows of which many have a question in common, in either place."""
    numbers = st.tuples(st.integers(0, 30), st.integers(0, 30))
    return [
        {"question1": f"why {a}?", "question2": f"why {b}?", "label": 0}
        for a, b in draw(st.lists(numbers, min_size=3, max_size=40))
    ]


@settings(max_examples=60, deadline=None)
@given(train=pairs(), test=st.none() | pairs())
def test_no_question_of_a_pair_is_in_two_splits(tmp_path_factory, train, test):
    folder = tmp_path_factory.mktemp("pairs")
    write(folder / "train.jsonl", train)
    if test:
        write(folder / "test.jsonl", test)
    splits = load_if_enough(QQP, folder)
    seen = [{q for e in part for q in e.prompt.split("\n")[:2]} for part in parts(splits)]
    seen = [{text.partition(": ")[2] for text in texts} for texts in seen]
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]
    assert {e.prompt for e in splits.train + splits.dev} <= {QQP.prompt(row) for row in train}
    if test is None:
        assert sum(map(len, parts(splits))) == len(train)


def tree(words, rng):
    """The phrases of a random binary tree over `words`, those of one word too."""
    if len(words) == 1:
        return [words]
    cut = rng.randrange(1, len(words))
    return [words, *tree(words[:cut], rng), *tree(words[cut:], rng)]


def phrases(sentences, seed=0):
    """As SST-2 has them: all phrases of all sentences, each text once, in a random order."""
    rng = random.Random(seed)
    vocabulary = [f"{kind}{i}" for kind in ("noun", "verb", "word") for i in range(150)]
    texts = {
        " ".join(phrase): None
        for _ in range(sentences)
        for phrase in tree([*rng.choices(vocabulary, k=rng.randrange(5, 15)), "."], rng)
    }
    rows = [{"sentence": text, "label": i % 2} for i, text in enumerate(texts)]
    rng.shuffle(rows)
    return rows


def leaks(part, of, least=1):
    """Texts of `part` that lie inside one of `of`, word for word."""
    texts = " | ".join(f" {words(e)} " for e in of)
    return [e for e in part if len(words(e).split()) >= least and f" {words(e)} " in texts]


def words(example):
    return example.prompt.removesuffix(" It was").removesuffix(".").strip()


@pytest.mark.parametrize("own", [False, True], ids=["one file", "test of its own"])
def test_no_phrase_is_tuned_on_whose_sentence_is_trained_on(tmp_path, own):
    rows = phrases(500)
    write(tmp_path / "train.jsonl", rows)
    if own:
        write(tmp_path / "validation.jsonl", phrases(40, seed=1))
    before, splits = (load_examples(t, str(tmp_path)) for t in (as_before(SST2), SST2))
    assert len(leaks(before.dev, before.train)) > 0.8 * len(before.dev)

    assert len(splits.dev) == 50
    assert all(e.prompt.endswith(" . It was") for e in splits.dev)
    assert leaks(splits.dev, splits.train) == []
    for one in parts(splits):
        for other in parts(splits):
            if one is not other:
                assert leaks(one, other, least=2) == []
    assert len(splits.test) == len(before.test) if own else len(splits.test) == 50
    assert len(splits.train) > 0.78 * len(rows)
    assert "rows with text of another split removed" in splits.source


SENTENCE = st.lists(WORD, min_size=1, max_size=5).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(SENTENCE, min_size=6, max_size=40),
    st.none() | st.lists(SENTENCE, min_size=1, max_size=6),
)
def test_no_phrase_is_in_two_splits(tmp_path_factory, train, test):
    folder = tmp_path_factory.mktemp("phrases")
    for name, texts in {"train": train, "test": test or []}.items():
        if texts:
            rows = [{"sentence": text, "label": 0} for text in texts]
            write(folder / f"{name}.jsonl", rows)
    splits = load_if_enough(SST2, folder)
    assert leaks(splits.dev, splits.train) == []
    for one in parts(splits):
        for other in parts(splits):
            if one is not other:
                assert leaks(one, other, least=2) == []
                assert not {e.prompt for e in one} & {e.prompt for e in other}


@pytest.mark.parametrize(
    "task", [t for t in TASKS.values() if t.shared], ids=lambda task: task.name
)
@pytest.mark.parametrize("own", [False, True], ids=["one file", "test of its own"])
def test_where_nothing_is_shared_the_splits_are_those_of_before(tmp_path, task, own):
    columns = [*task.columns, task.label_column, *task.answers]

    def row(i):
        values = {name: f"{name} {i}" for name in columns}
        return values | {"label": i % 2, "span2_index": 0}

    write(tmp_path / "train.jsonl", map(row, range(300)))
    if own:
        write(tmp_path / "test.jsonl", map(row, range(900, 930)))
    new, old = (load_examples(t, str(tmp_path)) for t in (task, as_before(task)))
    assert (new.fingerprint, new.source) == (old.fingerprint, old.source)
    assert len(new.dev) == 30


def test_every_task_whose_rows_have_more_than_one_text_says_what_they_share():
    for task in TASKS.values():
        assert bool(task.shared) == (len(task.columns) > 1 or task is SST2)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [
        ("rotten_tomatoes", "42ae2d2a3cc37005eca9277dcc36eed5712dcc69b8cf2d2417164a3e4ac64bdb"),
        ("imdb", "6c849f126eedeeb91df10d6dd7b7f43750677690f7a64f661f1a7692d7cf01f9"),
    ],
)
def test_runs_on_the_packaged_reviews_go_on(name, fingerprint):
    """Their data are those of version 0.1, and the figures of the demo with them."""
    assert load_examples(get_task(name)).fingerprint == fingerprint
