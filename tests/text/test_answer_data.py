"""Examples of tasks whose answers are written, from files and from the hub."""

import dataclasses
import json

import pytest

from hiso.errors import LoadError
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.task import Source
from hiso.workloads.text.tasks import get_task

from .test_examples import write_csv

SQUAD, DROP, XSUM = get_task("squad"), get_task("drop"), get_task("xsum")


def rows(count=40):
    return [(f"Text {i} says {i * i}.", f"What says {i}?", str(i * i)) for i in range(count)]


def test_all_formats_and_ways_to_write_one_answer_give_the_same_examples(tmp_path):
    write_csv(tmp_path / "a.csv", rows(), ("context", "question", "answer"))
    write_csv(tmp_path / "b.csv", rows(), ("context", "question", "answers"))
    lines = ["context\tquestion\tanswer", *("\t".join(row) for row in rows())]
    (tmp_path / "c.tsv").write_text("\n".join(lines) + "\n")
    ways = {
        "d": lambda answer: {"answer": answer},
        "e": lambda answer: {"answers": [answer]},
        "f": lambda answer: {"answer": int(answer)},
        "g": lambda answer: {"answers": [f" {answer}\n", "", answer]},
        "h": lambda answer: {"answers": {"text": [answer], "answer_start": [5]}},
        "i": lambda answer: {"answers": [answer], "answer": "not this one"},
    }
    for name, way in ways.items():
        objects = [{"context": c, "question": q, **way(a)} for c, q, a in rows()]
        text = "".join(json.dumps(row) + "\n" for row in objects)
        (tmp_path / f"{name}.jsonl").write_text(text)
    loaded = [load_examples(SQUAD, str(path)) for path in sorted(tmp_path.iterdir())]
    assert len(loaded) == 9
    for splits in loaded[1:]:
        assert splits.train == loaded[0].train
        assert splits.fingerprint == loaded[0].fingerprint
    first = loaded[0].train[0]
    assert first.prompt == "Text 0 says 0.\nQuestion: What says 0?\nAnswer:"
    assert (first.answers, first.label) == (("0",), None)
    assert first.prompt[: first.context] == "Text 0 says 0."


def test_the_fingerprint_follows_answers_and_nothing_else_has_changed_its_own(tmp_path):
    """The fixed ones are of version 0.1: runs made with it must go on."""
    path, seen = tmp_path / "a.jsonl", set()
    for answers in (["a", "b"], ["b", "a"], ["a"], ["a b"]):
        objects = [{"context": f"c {i}", "question": "q", "answers": answers} for i in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in objects))
        seen.add(load_examples(SQUAD, str(path)).fingerprint)
    assert len(seen) == 4
    path = write_csv(
        tmp_path / "a.csv", [(f"text {i}", i % 2) for i in range(30)], ("sentence", "label")
    )
    assert load_examples(get_task("sst2"), str(path)).fingerprint == (
        "60a87a6ba9ba1613eb66014ce91687295844a87fd8a977848d81616df3f809d5"
    )


def test_problems_of_a_local_file_are_reported_with_their_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    good = {"context": "c", "question": "q", "answers": ["a"]}
    bad = [
        good,
        {"context": "c", "question": "q"},
        good | {"answers": []},
        good | {"answers": [" "]},
        good | {"context": " "},
        good | {"answers": [["a"]]},
        good | {"answers": {"text": 3.5, "spans": 4}},
        good | {"answers": {"wrong": ["a"]}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(LoadError) as caught:
        load_examples(SQUAD, str(path))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("6 problems:")
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == [
        f"line {n}" for n in (2, 3, 4, 5, 6, 8)
    ]
    assert "no column 'answers' or 'answer'; columns: context, question" in lines[1]
    assert lines[2].endswith("no answer")
    assert "'context' is empty" in lines[4]
    assert "the answer [['a']] is neither a text nor a list of texts" in lines[5]
    assert "context, question, answers or answer" in lines[-1]


def test_a_table_without_answers_is_explained(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("a", "b")], ("document", "title"))
    message = r"line 2: no column 'summary' or 'answers' or 'answer'; columns: document, title"
    with pytest.raises(LoadError, match=message):
        load_examples(XSUM, str(path))
    path = write_csv(tmp_path / "b.csv", [("a", "b", "")] * 3, ("passage", "question", "answer"))
    with pytest.raises(LoadError, match="3 problems"):
        load_examples(DROP, str(path))


HUB = {
    "squad": lambda i: {
        "id": str(i),
        "title": "T",
        "context": f"c {i}",
        "question": "q?",
        "answers": {"text": ["a", f"b {i}", "a"] if i % 9 else [], "answer_start": [0, 1, 0]}
        | ({} if i % 9 else {"answer_start": []}),
    },
    "drop": lambda i: {
        "section_id": "s",
        "query_id": str(i),
        "passage": f"p {i}",
        "question": "q?",
        "answers_spans": {"spans": ["3", f"{i}"], "types": ["number", "number"]},
    },
    "xsum": lambda i: {"document": f"d {i}\nmore", "summary": f"s {i}" if i % 9 else "", "id": "0"},
}


def features(name):
    from datasets import Features, Sequence, Value

    text, number = Value("string"), Value("int32")
    kinds = {
        "answers": Sequence({"text": text, "answer_start": number}),
        "answers_spans": Sequence({"spans": text, "types": text}),
    }
    return Features({column: kinds.get(column, text) for column in HUB[name](1)})


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("task", "reporting"), [(SQUAD, "validation"), (DROP, "validation"), (XSUM, "test")]
)
def test_rows_as_the_hub_has_them_are_read(tmp_path, task, reporting):
    """With the features that the data sets declare; rows without an answer are left out."""
    from datasets import Dataset

    for split, numbers in {
        "train": range(60),
        "validation": range(60, 70),
        "test": range(70, 81),
    }.items():
        made = [HUB[task.name](i) for i in numbers]
        columns = {column: [row[column] for row in made] for column in made[0]}
        if split == reporting or split == "train" or task is XSUM:
            Dataset.from_dict(columns, features=features(task.name)).to_parquet(
                tmp_path / f"{split}-0.parquet"
            )
    assert task.source is not None
    local = dataclasses.replace(task, source=dataclasses.replace(task.source, id=str(tmp_path)))
    splits = load_examples(local)
    assert f"{reporting} for reporting" in splits.source
    found = {e.prompt: e for e in [*splits.train, *splits.dev]}
    kept = [i for i in range(60) if i % 9 or task is DROP]
    assert len(found) == len(kept)
    for i in kept:
        row = HUB[task.name](i)
        gold = {
            "squad": ("a", f"b {i}"),
            "drop": tuple(dict.fromkeys(("3", str(i)))),
            "xsum": (f"s {i}",),
        }
        one = found[task.prompt(row)]
        assert one.answers == gold[task.name]
        assert one.prompt[: one.context] == str(row[task.columns[0]])
    assert len(splits.test) == sum(
        bool(i % 9) or task is DROP for i in (range(70, 81) if task is XSUM else range(60, 70))
    )


@pytest.mark.usefixtures("cache")
def test_a_hub_data_set_with_other_columns_is_explained(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"context": ["c"] * 9, "question": ["q"] * 9}).to_parquet(
        tmp_path / "train-0.parquet"
    )
    task = dataclasses.replace(SQUAD, source=Source(str(tmp_path)))
    with pytest.raises(LoadError, match=r"no column 'answers' or 'answer' in split 'train'"):
        load_examples(task)
    nested = {"context": ["c"] * 9, "question": ["q"] * 9, "answers": [[["a"]]] * 9}
    Dataset.from_dict(nested).to_parquet(tmp_path / "train-0.parquet")
    with pytest.raises(LoadError, match=r"split 'train': the answer \[\['a'\]\] is neither"):
        load_examples(task)


def test_without_a_connection_the_columns_are_named(offline):
    with pytest.raises(
        LoadError, match=r"rajpurkar/squad.*columns context, question, answers or answer and"
    ):
        load_examples(SQUAD)
