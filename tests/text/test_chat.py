"""Prompts as turns of a chat, as token ids."""

from __future__ import annotations

import dataclasses

import pytest

from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.chat import read_chat
from hiso.workloads.text.columns import choose_words
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.models import load_tokenizer
from hiso.workloads.text.task import Chat
from hiso.workloads.text.tasks import get_task
from hiso.workloads.text.verbalizer import check_labels, tokens

from ..chats import TEMPLATE, make_chat_tokenizer

SST2, SQUAD = get_task("sst2"), get_task("squad")
LONG = "The film was very long and the acting was very bad. " * 12


@pytest.fixture(scope="module")
def tokenizer():
    return make_chat_tokenizer()


@pytest.fixture(scope="module")
def chat(tokenizer) -> Chat:
    return read_chat(tokenizer)


def by_transformers(tokenizer, prompt: str) -> list[int]:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=False,
    )


def test_the_turns_are_those_of_the_template(tokenizer, chat):
    assert chat == Chat("<s><|user|>\n", "<|end|>\n<|assistant|>\n")
    task = SST2.in_chat(chat)
    examples = [Example(f"{text} It was", 1) for text in ("great", "very bad\nand long")]
    for example, found in zip(examples, encode(examples, task, tokenizer, 64), strict=True):
        assert found.ids.tolist() == by_transformers(tokenizer, example.prompt)


def test_label_words_begin_the_turn_of_the_assistant(tokenizer, chat):
    task = SST2.in_chat(chat)
    assert task.labels == ("terrible", "great")
    before = by_transformers(tokenizer, "1 It was")
    for word, ids in zip(task.labels, check_labels(task, tokenizer).tokens, strict=True):
        whole = tokenizer(tokenizer.decode(before) + word, add_special_tokens=False).input_ids
        assert [*before, *ids] == whole
        assert tokenizer.decode(ids) == word


@pytest.mark.parametrize("length", [24, 40, 63])
def test_what_is_too_long_loses_text_and_nothing_of_the_template(tokenizer, chat, length):
    task = SST2.in_chat(chat)
    prompt = f"{LONG.strip()} It was"
    (found,) = encode([Example(prompt, 0)], task, tokenizer, length)
    whole = by_transformers(tokenizer, prompt)
    opening = len(tokens(tokenizer, chat.before))
    assert len(whole) > length == len(found.ids)
    cut = whole[:opening] + whole[len(whole) - length + opening :]
    assert found.ids.tolist() == cut


def test_a_long_context_loses_its_end(tokenizer, chat):
    task = SQUAD.in_chat(chat)
    row = {"context": LONG, "question": "How was it?"}
    prompt = task.prompt(row)
    example = Example(prompt, None, answers=("very bad",), context=task.context(row))
    (found,) = encode([example], task, tokenizer, 120)
    text = tokenizer.decode(found.ids)
    assert len(found.ids) <= 120
    assert text.startswith(chat.before + "The film was")
    asked = "\nQuestion: How was it?\nAnswer:" + chat.after
    assert text.endswith(f"{asked}very bad</s>")
    assert tokenizer.decode(found.ids[: found.start]).endswith(asked)
    (short,) = encode([example], task, tokenizer, 800)
    assert short.ids[: short.start].tolist() == by_transformers(tokenizer, prompt)


@pytest.mark.parametrize("task", [SST2, SQUAD], ids=["labels", "answers"])
def test_no_room_beside_the_template_is_refused(tokenizer, chat, task):
    row = dict.fromkeys(task.columns, "good")
    example = Example(task.prompt(row), 0, answers=("bad",), context=task.context(row))
    fixed = len(by_transformers(tokenizer, task.cue)) + task.answer_tokens
    assert encode([example], task, tokenizer, 64)
    with pytest.raises(SettingsError, match="chat template"):
        encode([example], task.in_chat(chat), tokenizer, fixed - 1)
    assert encode([example], task.in_chat(chat), tokenizer, fixed + 1)


def test_words_are_made_of_values_as_they_begin_a_turn(tokenizer, chat):
    task = dataclasses.replace(SST2, labels=(), classes=()).in_chat(chat)
    assert choose_words(task, ["bad", "great"], tokenizer).labels == ("bad", "great")


def test_every_day_has_the_same_prompts_and_nobody_thinks():
    dated = make_chat_tokenizer("{{ strftime_now('%d %b %Y') }}|" + TEMPLATE)
    assert read_chat(dated).before.startswith("26 Jul 2024|")
    thinking = make_chat_tokenizer(
        TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
    )
    assert read_chat(thinking).after.endswith("<|assistant|>\n<think></think>")


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ raise_exception('no system turn') }}",
        TEMPLATE.replace("message.content", "message.content | upper"),
        TEMPLATE.replace("{{ message.content }}", "{{ message.content }}{{ message.content }}"),
    ],
    ids=["none", "raises", "alters", "repeats"],
)
def test_a_template_that_cannot_be_used_is_refused(template):
    with pytest.raises(LoadError, match="prompt_style"):
        read_chat(make_chat_tokenizer(template))


@pytest.mark.model
def test_the_packaged_model_has_a_template():
    tokenizer = load_tokenizer("smollm2")
    task = SST2.in_chat(read_chat(tokenizer))
    (found,) = encode([Example("I love it. It was", 1)], task, tokenizer, 64)
    assert found.ids.tolist() == by_transformers(tokenizer, "I love it. It was")
    assert check_labels(task, tokenizer).mode == "token"
