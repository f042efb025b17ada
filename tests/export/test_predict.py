"""What a tuned model says: labels, answers, free text."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hiso import HiSo, Identity, Predictor, evaluate_run, load, simulate
from hiso.errors import Diverged, LoadError
from hiso.export.adapter import read_log
from hiso.export.load import Tuned
from hiso.export.predict import CONTINUATION, rows_of
from hiso.export.task import task_of
from hiso.workloads.text.models import load_model
from hiso.workloads.text.tasks import get_task
from hiso.workloads.text.verbalizer import prefix, tokens

from ..tiny import save_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_probabilities_are_the_softmax_of_the_models_logits(adapter, tiny_model):
    tuned = load(tiny_model, adapter)
    rows = [{"text": "A lovely film."}, {"text": "dull and far too long " * 20}, {"text": "x"}]
    task = get_task("rotten_tomatoes")
    first = [tokens(tuned.tokenizer, word)[0] for word in task.labels]
    for row, said in zip(rows, Predictor(tuned)(rows), strict=True):
        ids = tokens(tuned.tokenizer, task.prompt(row))[-24:]
        with torch.inference_mode():
            logits = tuned.model(torch.tensor([ids])).logits[0, -1, first].double()
        expected = dict(zip(("neg", "pos"), logits.softmax(0).tolist(), strict=True))
        assert said["tuned"]["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert said["tuned"]["label"] == max(expected, key=expected.get)


def test_label_words_of_several_tokens(tmp_path, base):
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(40)]
    data = tmp_path / "cb.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    simulate(out=tmp_path / "run", **base | {"task": "cb", "data": str(data), "rounds": 1})
    (said,) = Predictor(load(None, read_log(tmp_path / "run")))(rows[:1])
    assert list(said["tuned"]["probabilities"]) == ["entailment", "contradiction", "neutral"]
    assert math.fsum(said["tuned"]["probabilities"].values()) == pytest.approx(1)


def test_answers_are_those_that_were_learned(tmp_path, base):
    """The run of tests/run/test_answers.py, which learns one answer to everything."""
    rows = [
        {"context": f"The film number {i} was long.", "question": "How was it?"}
        | {"answers": ["very good", "good"]}
        for i in range(60)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"task": "squad", "data": str(data), "max_length": 72, "eval_every": 0}
    settings |= {"method": "zo_sgd", "lr": 3e-3, "directions": 10, "rounds": 60}
    simulate(out=tmp_path / "run", **base | settings)
    assert evaluate_run(tmp_path / "run")["exact_match"] == 1
    predictor = Predictor(load(None, read_log(tmp_path / "run"), keep_base=True))
    asked = [{"context": "The film number 99 was long.", "question": "How was it?"}]
    (said,) = predictor(asked)
    assert said["tuned"] == {"answer": "very good"}
    assert said["base"]["answer"] != "very good"


@torch.inference_mode()
def test_free_text_goes_on_and_has_a_perplexity(tmp_path, base):
    data = tmp_path / "text.csv"
    data.write_text("text\n" + "".join(f"The film {i} was very good.\n" for i in range(40)))
    simulate(out=tmp_path / "run", **base | {"task": "text", "data": str(data), "rounds": 2})
    tuned = load(None, read_log(tmp_path / "run"))
    texts = ["The film was", "The film was good and the plot was bad. " * 30, "x"]
    said = [one["tuned"] for one in Predictor(tuned)([{"text": text} for text in texts])]
    ids = torch.tensor([prefix(tuned.tokenizer) + tokens(tuned.tokenizer, "The film was")])
    loss = tuned.model(ids, labels=ids).loss
    assert said[0]["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-5)
    assert said[1]["perplexity"] > 1
    assert said[2]["perplexity"] is None
    written = tuned.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=CONTINUATION, do_sample=False
    )
    text = tuned.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    assert said[0]["continuation"] == text.partition("\n")[0].strip() != ""


@torch.inference_mode()
def test_free_text_that_is_cut_keeps_its_beginning_token(tmp_path):
    lm = load_model(str(save_model(tmp_path / "model", "llama", begin=True)))
    task = {"name": "text", "template": "{text}", "labels": []}
    facts = {"model": {"fingerprint": lm.fingerprint}, "task": task, "data": {"max_length": 12}}
    tuned = Tuned(lm, None, Identity(method=HiSo(), seed=0, **facts), 0, 0, 0, None)
    text = " ".join(["The film was good and the plot was bad."] * 5)
    ids = torch.tensor([prefix(lm.tokenizer) + tokens(lm.tokenizer, text)[-11:]])
    assert ids[0, 0] == lm.tokenizer.bos_token_id
    (said,) = Predictor(tuned)([{"text": text}])
    expected = float(lm.model(ids, labels=ids).loss.exp())
    assert said["tuned"]["perplexity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("row", [{}, {"text": ""}, {"text": "  "}, {"text": None}, {"word": "x"}])
def test_a_row_without_a_text_is_refused(adapter, tiny_model, row):
    with pytest.raises(LoadError):
        Predictor(load(tiny_model, adapter))([{"text": "fine"}, row])


def test_a_number_is_a_text_too(adapter, tiny_model):
    number, text = Predictor(load(tiny_model, adapter))([{"text": 0}, {"text": "0"}])
    assert number["tuned"] == text["tuned"]


def test_a_model_that_is_no_numbers_says_so(adapter, tiny_model):
    tuned = load(tiny_model, adapter)
    with torch.no_grad():
        tuned.model.lm_head.weight.fill_(np.nan)
    with pytest.raises(Diverged):
        Predictor(tuned)([{"text": "fine"}])


def test_rows_of_several_columns_are_json():
    rte, reviews = get_task("rte"), get_task("rotten_tomatoes")
    assert rows_of(["a", "{}"], reviews) == [{"text": "a"}, {"text": "{}"}]
    row = {"sentence1": "a", "sentence2": "b"}
    assert rows_of([json.dumps(row)], rte) == [row]
    for bad in ("a", "[1]", "{"):
        with pytest.raises(LoadError):
            rows_of([bad], rte)


def test_a_task_of_ones_own_is_known_by_its_identity(tmp_path, base, tiny_model):
    from hiso import Task

    stars = Task(name="stars", template="{text} It was", labels=(" bad", " good"))
    simulate(out=tmp_path / "run", **base | {"task": stars, "rounds": 1})
    log = read_log(tmp_path / "run")
    task = task_of(log.identity)
    assert (task.template, task.labels, task.columns) == (stars.template, stars.labels, ("text",))
    (said,) = Predictor(load(tiny_model, log))([{"text": "A film."}])
    assert list(said["tuned"]["probabilities"]) == ["bad", "good"]
    assert task_of(read_log(tmp_path / "run").identity).classes == ()
