"""Tasks whose answers are written: their tokens, their loss, their evaluation."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hiso.data.batches import Batch
from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.generation import stop_tokens, write_answers
from hiso.workloads.text.metrics import evaluate
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.scores import SCORES, f1
from hiso.workloads.text.task import Task
from hiso.workloads.text.tasks import TASKS, get_task, headline
from hiso.workloads.text.verbalizer import prefix, tokens

from ..outcomes import means

SQUAD, DROP, XSUM = get_task("squad"), get_task("drop"), get_task("xsum")
WRITTEN = [SQUAD, DROP, XSUM]
IDS = ["squad", "drop", "xsum"]
SHORT = dataclasses.replace(SQUAD, answer_tokens=8)
ROWS = [
    ("The film was very good and the acting was great.", "Was it good?", ["very good"]),
    ("It was terrible.", "What was terrible?", ["It", "the film"]),
    ("The quick brown fox jumps over the lazy dog. " * 2, "Who is lazy?", ["the lazy dog", "dog"]),
    ("A fox.", "What?", ["fox"]),
    ("The plot was long, very long.", "How long was the plot?", ["very long", "long"]),
]


def example(context, question, answers, task=SQUAD):
    row = {"context": context, "question": question, "answers": answers}
    return Example(task.prompt(row), None, None, task.gold(row), task.context(row))


def examples(task=SQUAD):
    return [example(*row, task) for row in ROWS]


# tasks


@pytest.mark.parametrize("task", WRITTEN, ids=IDS)
def test_scores_are_known_and_the_first_is_shown(task):
    assert set(task.metrics) <= set(SCORES)
    assert headline(dict.fromkeys(sorted([*task.metrics, "loss"]), 0.5)) == task.metrics[0]


def test_the_accuracy_is_shown_where_there_is_one():
    for task in TASKS.values():
        known = {"f1", "accuracy"} if task.labels else set(task.metrics)
        expected = "accuracy" if task.labels else task.metrics[0]
        assert headline(dict.fromkeys(sorted(known | {"loss"}), 0.5)) == expected
    assert headline({"loss": 1.0}) is None


@pytest.mark.parametrize(
    "change",
    [
        {"labels": (" a", " b")},
        {"answer_tokens": 1},
        {"template": "Question: {question}\n{context}:"},
    ],
)
def test_a_task_of_answers_that_cannot_work_is_refused(change):
    with pytest.raises(LoadError, match="answer_tokens of 2 or more"):
        dataclasses.replace(SQUAD, columns=(), **change)


# tokens


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_an_answer_follows_its_prompt_and_ends_with_the_end_token(name, request):
    lm = request.getfixturevalue(name)
    for one, encoded in zip(examples(), encode(examples(), SQUAD, lm.tokenizer, 128), strict=True):
        whole = prefix(lm.tokenizer) + tokens(lm.tokenizer, f"{one.prompt} {one.answers[0]}")
        assert encoded.ids.tolist() == [*whole, lm.tokenizer.eos_token_id]
        prompt = prefix(lm.tokenizer) + tokens(lm.tokenizer, one.prompt)
        assert encoded.ids[: encoded.start].tolist() == prompt
        assert encoded.answers == one.answers


def test_where_the_tokenizer_joins_prompt_and_answer_the_answer_stands_alone():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(set("ab \nQuestion:Answer:")))}
    vocabulary = letters | {": ": len(letters), "</s>": len(letters) + 1}
    joining = Tokenizer(models.BPE(vocabulary, [(":", " ")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=joining, eos_token="</s>")
    (encoded,) = encode([example("a", "b", ["ab"])], SQUAD, tokenizer, 128)
    assert tokens(tokenizer, "Answer: ab")[6:] == [vocabulary[": "], letters["a"], letters["b"]]
    assert encoded.ids[encoded.start - 1] == letters[":"]
    own = [letters[" "], letters["a"], letters["b"], vocabulary["</s>"]]
    assert encoded.ids[encoded.start :].tolist() == own


def test_a_long_answer_is_cut_and_has_no_end(llama):
    long = example("A film.", "Was it?", ["very good and very long " * 9])
    (encoded,) = encode([long], SHORT, llama.tokenizer, 64)
    assert (
        encoded.ids[encoded.start :].tolist() == tokens(llama.tokenizer, f" {long.answers[0]}")[:8]
    )


def test_examples_are_tokenised_in_parts(llama, monkeypatch):
    whole = encode(examples(), SQUAD, llama.tokenizer, 64)
    monkeypatch.setattr("hiso.workloads.text.encode._AT_ONCE", 2)
    parts = encode(examples(), SQUAD, llama.tokenizer, 64)
    assert [e.ids.tolist() for e in parts] == [e.ids.tolist() for e in whole]
    assert encode([], SQUAD, llama.tokenizer, 64) == []


sentence = st.lists(st.sampled_from(["film", "very", "good", "fox", "x", "was", "."]), min_size=1)
CUE = "\nAnswer:"


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sentence, sentence, sentence, st.integers(40, 110), st.booleans())
def test_a_prompt_that_is_too_long_loses_the_end_of_its_context(
    llama, opt, context, question, answer, most, begin
):
    lm = opt if begin else llama
    tokenizer, before = lm.tokenizer, prefix(lm.tokenizer)
    context, question = " ".join(context), " ".join(question)
    one = example(context, question, [" ".join(answer)], SHORT)
    encoded, other = (
        encode([e], SHORT, tokenizer, most)[0]
        for e in (one, dataclasses.replace(one, answers=("something else",)))
    )
    prompt = encoded.ids[: encoded.start].tolist()
    assert len(encoded.ids) <= most
    assert other.ids[: other.start].tolist() == prompt  # the answer shows in no prompt
    assert prompt[: len(before)] == before
    body, whole = prompt[len(before) :], tokens(tokenizer, one.prompt)
    room = most - len(before) - 8
    assert len(body) == min(len(whole), room)
    kept = f"\nQuestion: {question}{CUE}"
    if len(tokens(tokenizer, kept)) <= room:
        text = tokenizer.decode(body)
        assert text.endswith(kept)
        assert context.startswith(text.removesuffix(kept))
    else:
        assert body == whole[-room:]


def test_no_room_for_the_text_is_refused(llama):
    taken = len(tokens(llama.tokenizer, CUE)) + 8
    message = rf"max_length {taken} leaves no room.*takes {taken} tokens"
    with pytest.raises(SettingsError, match=message):
        encode(examples(), SHORT, llama.tokenizer, taken)
    for encoded in encode(examples(), SHORT, llama.tokenizer, taken + 1):
        assert encoded.start == taken + 1 - 8


# loss


def batches(lm, task=SQUAD):
    encoded = encode(examples(task), task, lm.tokenizer, 96)
    return [Batch(0, tuple(encoded[:2])), Batch(4, tuple(encoded[2:]))]


def reference(lm, batch):
    """transformers' own loss in float64; labels of -100 leave prompt and padding out."""
    return loss_and_model(lm, batch)[0].item()


def loss_and_model(lm, batch):
    longest = max(len(e.ids) for e in batch.examples)
    ids = torch.full((len(batch.examples), longest), 3)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, e in enumerate(batch.examples):
        ids[i, : len(e.ids)] = torch.from_numpy(e.ids)
        mask[i, : len(e.ids)] = 1
        labels[i, e.start : len(e.ids)] = torch.from_numpy(e.ids[e.start :])
    model = copy.deepcopy(lm.model).double()
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss, model


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_loss_is_that_of_transformers_on_the_answers_tokens(name, joint, request):
    lm = request.getfixturevalue(name)
    drawn = batches(lm)
    objective = Objective(lm, SQUAD, joint=joint)
    assert means(objective(drawn)) == pytest.approx(
        [reference(lm, batch) for batch in drawn], abs=1e-5
    )
    assert objective.passes == (1 if joint else 2)
    counts = [len(e.ids) - e.start for e in drawn[1].examples]
    assert objective.measure(drawn[1].examples).weights.tolist() == counts


def test_the_gradient_is_that_of_transformers(llama):
    for batch in batches(llama):
        lm = dataclasses.replace(llama, model=copy.deepcopy(llama.model))
        loss = Objective(lm, SQUAD).loss(batch)
        loss.backward()
        expected, model = loss_and_model(llama, batch)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        for mine, theirs in zip(lm.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad.float(), rtol=1e-4, atol=1e-5)


def test_neither_prompt_nor_padding_is_in_the_loss(llama):
    drawn, objective = batches(llama), Objective(llama, SQUAD, joint=False)
    losses = means(objective(drawn))
    other = dataclasses.replace(llama, tokenizer=copy.deepcopy(llama.tokenizer))
    other.tokenizer.pad_token = "<s>"
    assert means(Objective(other, SQUAD, joint=False)(drawn)) == losses
    assert means(objective(drawn[:1])) + means(objective(drawn[1:])) == losses
    for batch, loss in zip(drawn, losses, strict=True):
        alone = [objective.measure([e]) for e in batch.examples]
        mean = sum(o.losses[0] for o in alone) / sum(o.weights[0] for o in alone)
        assert mean == pytest.approx(loss, abs=1e-5)


def test_free_text_and_answers_are_measured_alike(llama):
    """An answer whose prompt is one token is a free text that begins with it."""
    encoded = encode(examples(), SQUAD, llama.tokenizer, 96)
    answers = [dataclasses.replace(e, start=1) for e in encoded]
    texts = [dataclasses.replace(e, start=0, answers=()) for e in encoded]
    measured = Objective(llama, SQUAD).measure(answers)
    other = Objective(llama, get_task("text")).measure(texts)
    assert measured.losses.tolist() == other.losses.tolist()
    assert measured.weights.tolist() == other.weights.tolist()
    assert measured.scores is other.scores is None


# evaluation


def test_evaluation_scores_what_the_model_writes(llama):
    """Right answers are made of what it writes: of three, one matches, one half, one not."""
    made, stops = examples()[:3], stop_tokens(llama)
    prompts = [e.ids[: e.start] for e in encode(made, SHORT, llama.tokenizer, 96)]
    written = write_answers(llama, prompts, SHORT.answer_tokens, stops)
    golds = [(written[0], "zzz"), ("zzz", f"{written[1]} zzz"), ("zzz",)]
    made = [dataclasses.replace(e, answers=gold) for e, gold in zip(made, golds, strict=True)]
    objective, told = Objective(llama, SHORT), []
    encoded = encode(made, SHORT, llama.tokenizer, 96)
    result = evaluate(objective, encoded, 2, on_batch=told.append)
    assert told == [2, 1]
    part = f1(written[1], f"{written[1]} zzz")
    assert 0 < part < 1
    assert list(result) == ["loss", "f1", "exact_match"]
    assert result["f1"] == pytest.approx((1 + part) / 3)
    assert result["exact_match"] == pytest.approx(1 / 3)
    assert result["loss"] == pytest.approx(objective.measure(encoded).mean, abs=1e-5)
    for size in (1, 3):
        assert evaluate(objective, encoded, size) == pytest.approx(result, abs=1e-5)


def test_summaries_are_scored_by_rouge(llama):
    row = {"document": "The film was very good. " * 3, "summary": "A good film."}
    made = Example(XSUM.prompt(row), None, None, XSUM.gold(row), XSUM.context(row))
    result = evaluate(Objective(llama, XSUM), encode([made], XSUM, llama.tokenizer, 128), 4)
    assert list(result) == ["loss", "rougeL", "rouge1", "rouge2"]


def test_a_task_of_ones_own(llama):
    task = Task(
        name="mine",
        template="{text}\nIn short:",
        answers=("short",),
        answer_tokens=4,
        metrics=("exact_match", "rouge1"),
    )
    row = {"text": "The film was very good.", "short": "good"}
    made = Example(task.prompt(row), None, None, task.gold(row), task.context(row))
    encoded = encode([made], task, llama.tokenizer, 64)
    assert set(evaluate(Objective(llama, task), encoded, 4)) == {"loss", "exact_match", "rouge1"}
