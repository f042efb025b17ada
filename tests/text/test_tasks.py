import dataclasses
from string import Formatter

import pytest

from hiso.errors import LoadError
from hiso.workloads.text.task import Task
from hiso.workloads.text.tasks import TASKS, get_task
from hiso.workloads.text.verbalizer import check_labels, tokens


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_column_reaches_the_prompt(task):
    row = {name: f"unique {name} words" for name in task.columns}
    if task.name == "wsc":
        row |= {"text": "they say they know", "span2_text": "they", "span2_index": "2"}
        assert "they say *they* know" in task.prompt(row)
        row |= {"text": "unique text words", "span2_text": "words"}
    prompt = task.prompt(row)
    for name in task.columns:
        if name != "span2_index":
            assert row[name] in prompt.replace("*", "")
            changed = task.prompt(row | {name: "something else"})
            assert changed != prompt
    assert prompt == prompt.rstrip()


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_class_can_be_reached_by_number_name_and_word(task):
    assert len(task.classes) == len(task.labels)
    for number, (name, word) in enumerate(zip(task.classes, task.labels, strict=True)):
        assert task.label(number) == task.label(str(number)) == task.label(f" {number} ") == number
        assert task.label(name) == task.label(name.upper()) == number
        assert task.label(word) == task.label(word.strip().lower()) == number
        assert word.startswith(" ")
    for value in (-1, len(task.labels), "nonsense", "", None):
        assert task.label(value) is None


def test_truth_values_mean_yes_and_no():
    assert (get_task("boolq").label(True), get_task("boolq").label(False)) == (1, 0)
    assert get_task("sst2").label(True) is None


def test_numbers_that_are_names_are_no_places():
    task = Task(name="stars", template="{text}", labels=(" bad", " good"), classes=("1", "2"))
    values = {0: None, 1: 0, "2": 1, " 1 ": 0, "good": 1, 3: None}
    assert {value: task.label(value) for value in values} == values
    exact = dataclasses.replace(task, classes=("worse", "better"), exact=True)
    assert [exact.label(value) for value in (" Better", "worse", 0, "good")] == [1, 0, None, None]


def test_cb_has_three_classes_and_qqp_two_questions():
    assert get_task("cb").classes == ("entailment", "contradiction", "neutral")
    prompt = get_task("qqp").prompt({"question1": "Why A?", "question2": "Why B?"})
    assert "Why A?" in prompt
    assert "Why B?" in prompt


def test_braces_in_a_row_are_text():
    assert get_task("sst2").prompt({"sentence": "{label} {0}"}) == "{label} {0} It was"


def test_templates_name_columns_only():
    for task in TASKS.values():
        fields = {field for _, field, _, _ in Formatter().parse(task.template) if field}
        assert fields <= set(task.columns)


def test_an_unknown_task_names_those_that_come_close():
    with pytest.raises(LoadError, match=r"Did you mean sst2\?"):
        get_task("SST-2")
    with pytest.raises(LoadError, match="Tasks: sst2, rte"):
        get_task("qwertz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "{text} It was "}, "ends in white space"),
        ({"labels": (" good",)}, "at least two"),
        ({"labels": (" good", " good")}, "all different"),
        ({"shared": ("passage",)}, "must be among its columns"),
        ({"phrases": True}, "exactly one"),
    ],
)
def test_a_task_that_cannot_work_is_refused(change, message):
    with pytest.raises(LoadError, match=message):
        Task(**({"name": "mine", "template": "{text} It was", "labels": (" a", " b")} | change))


def test_words_with_first_tokens_of_their_own_are_compared_by_them(llama):
    verbalizer = check_labels(get_task("sst2"), llama.tokenizer)
    assert verbalizer.mode == "token"
    assert [llama.tokenizer.decode(ids) for ids in verbalizer.tokens] == [" terrible", " great"]
    assert verbalizer.first == [ids[0] for ids in verbalizer.tokens]
    assert verbalizer.longest == 0


def test_words_that_begin_alike_are_compared_as_a_whole(llama):
    task = dataclasses.replace(get_task("sst2"), labels=(" very bad", " very good"))
    verbalizer = check_labels(task, llama.tokenizer)
    assert verbalizer.mode == "sequence"
    assert verbalizer.first[0] == verbalizer.first[1]
    assert verbalizer.longest == 2


def test_label_tokens_are_those_that_follow_the_prompt(opt):
    task = get_task("cb")
    prompt = task.prompt({"premise": "The film was bad.", "hypothesis": "It was good."})
    for word, ids in zip(task.labels, check_labels(task, opt.tokenizer).tokens, strict=True):
        assert tokens(opt.tokenizer, prompt) + list(ids) == tokens(opt.tokenizer, prompt + word)


def test_label_words_outside_the_vocabulary_are_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {"<unk>": 0, "It": 1, "was": 2, "great": 3}
    words = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    with pytest.raises(LoadError, match=r"no tokens for the label word\(s\) ' terrible'"):
        check_labels(get_task("sst2"), tokenizer)
    letters = Tokenizer(models.WordLevel(known | {" ": 4}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>")
    task = dataclasses.replace(get_task("sst2"), labels=(" great", "  great"))
    with pytest.raises(LoadError, match="does not tell the label words"):
        check_labels(task, tokenizer)


@pytest.mark.parametrize("name", ["text", "squad"])
def test_free_text_and_answers_have_no_label_words(llama, name):
    with pytest.raises(LoadError, match=f"task '{name}' has no label words"):
        check_labels(get_task(name), llama.tokenizer)


@pytest.mark.model
def test_the_packaged_model_tells_all_label_words_apart_by_one_token(smollm2):
    for task in TASKS.values():
        if task.labels:
            assert check_labels(task, smollm2.tokenizer).mode == "token"
