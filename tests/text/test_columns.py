"""Classes and label words from the columns of a file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import LoadError
from hiso.workloads.text.columns import MOST_CLASSES, choose_words, count_classes, in_order
from hiso.workloads.text.models import load_tokenizer
from hiso.workloads.text.task import Task
from hiso.workloads.text.verbalizer import check_labels

PLAIN = Task(name="own", template="{text}\nLabel:")


def table(path, labels, header="text,label"):
    path.write_text(header + "\n" + "".join(f"row {i},{label}\n" for i, label in enumerate(labels)))
    return str(path)


def test_rows_are_counted_by_value_whatever_their_order(tmp_path):
    one = table(tmp_path / "a.csv", ["10", "2", "low", "2", " LOW ", "10", "10"])
    other = table(tmp_path / "b.csv", ["low", "10", "Low", "10", "2", "10", "2"])
    counts = {"low": 2, "2": 2, "10": 3}
    for path in (one, other):
        found = count_classes(path, ["text"], "label")
        assert (found, list(found)) == (counts, list(counts))


def test_the_files_of_a_folder_count_together(tmp_path):
    table(tmp_path / "train.csv", ["a", "b", "a"])
    table(tmp_path / "test.csv", ["c", "b"])
    assert count_classes(str(tmp_path), ["text"], "label") == {"a": 2, "b": 2, "c": 1}


@pytest.mark.parametrize(
    ("labels", "columns", "label", "words"),
    [
        ("ab", ["txt"], "stars", ["no column 'txt', 'stars'", "has: 'text', 'label'"]),
        (["a", "", "b", " "], ["text"], "label", ["line 3: 'label' is empty", "line 5"]),
        ("aaa", ["text"], "label", ["one value only, 'a'"]),
        (range(MOST_CLASSES + 1), ["text"], "label", ["21 distinct", "[task_definition.labels]"]),
    ],
)
def test_a_column_that_is_none_of_labels_is_explained(tmp_path, labels, columns, label, words):
    path = table(tmp_path / "rows.csv", labels)
    with pytest.raises(LoadError) as caught:
        count_classes(path, columns, label)
    assert all(word in str(caught.value) for word in words)


def test_lines_of_json_may_have_columns_of_their_own(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": true}\n{"label": 1}\n{"text": "b"}\n')
    with pytest.raises(LoadError, match=r"2 problems(.|\n)*line 2: no column 'text'(.|\n)*line 3"):
        count_classes(str(path), ["text"], "label")


@pytest.mark.parametrize("data", ["owner/name", "missing.csv", "rows.txt"])
def test_what_is_no_file_of_rows_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.txt").write_text("text,label\n")
    with pytest.raises(LoadError, match=r"task_definition\.labels"):
        count_classes(data, ["text"], "label")


@given(st.lists(st.one_of(st.text(), st.integers(), st.floats()).map(str), unique=True), st.data())
def test_the_order_of_values_is_their_own(values, data):
    shuffled = data.draw(st.permutations(values))
    assert in_order(shuffled) == in_order(values)


def test_the_values_are_the_words_where_they_begin_with_different_tokens(llama):
    found = choose_words(PLAIN, ["Great", "terrible"], llama.tokenizer)
    assert found.labels == (" Great", " terrible")
    assert found.classes == ("Great", "terrible")
    assert check_labels(found, llama.tokenizer).mode == "token"


@pytest.mark.parametrize("values", [("very", "very good"), ("1", "01")])
def test_values_that_begin_alike_are_refused_with_the_remedy(llama, values):
    with pytest.raises(LoadError, match=r"different tokens(.|\n)*\[task_definition\.labels\]"):
        choose_words(PLAIN, values, llama.tokenizer)


@pytest.mark.model
def test_stars_become_words_that_the_packaged_model_tells_apart():
    tokenizer = load_tokenizer("smollm2")
    for values in ("1 2 3 4 5", "1.0 2.0 3.0 4.0 5.0"):
        task = choose_words(PLAIN, values.split(), tokenizer)
        assert task.labels == (" one", " two", " three", " four", " five")
        assert check_labels(task, tokenizer).mode == "token"
        assert [task.label(value) for value in values.split()] == [0, 1, 2, 3, 4]
