"""Models with a classification head: scores, loss and accuracy against plain transformers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hiso.core.identity import Identity
from hiso.core.method.registry import ZoSgd
from hiso.core.replica.replica import Replica
from hiso.data.batches import Batch
from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.classes import check_classes
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.metrics import evaluate
from hiso.workloads.text.models import copy_model, load_model, names_classifier
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.task import Task

from ..tiny import save_classifier, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["bert", "roberta", "distilbert", "llama", "gpt2"]
TASK = Task(name="films", template="{text}", labels=(" bad", " good"))
TEXTS = [
    "The film was very good and the acting was great.",
    "What a terrible plot!",
    "It was very bad and very long, and the dog jumps over the quick brown fox. " * 2,
    "Great.",
    "Does this mean that the following is true?",
]
EXAMPLES = [Example(text, i % 2) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_classifier(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@torch.inference_mode()
def plain_scores(folder, texts=TEXTS) -> np.ndarray:
    """Of one text after the other, by transformers alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [
        model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits[0].numpy()
        for text in texts
    ]
    return np.stack(rows)


def measured(lm, examples=EXAMPLES, **more):
    encoded = encode(examples, TASK, lm.tokenizer, 128, classifier=True)
    return Objective(lm, TASK, **more), encoded


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_plain_transformers(kind, folders):
    lm = load_model(str(folders[kind]))
    assert lm.classes == 2
    assert lm.context == 128
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    objective, encoded = measured(lm)
    expected = plain_scores(folders[kind])
    outcome = objective.measure(encoded)
    assert outcome.scores is not None
    assert outcome.scores.dtype == np.float32
    assert np.abs(outcome.scores - expected).max() < 1e-5
    assert expected.std() > 1e-2

    right = [e.label for e in EXAMPLES]
    odds = np.exp(expected.astype(np.float64))
    losses = [-math.log(row[y] / row.sum()) for row, y in zip(odds, right, strict=True)]
    figures = evaluate(objective, encoded, 2)
    assert figures["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert figures["accuracy"] == np.mean(expected.argmax(1) == right)
    assert figures.keys() == {"loss", "accuracy", "f1"}
    mean = objective.loss(Batch(0, tuple(encoded)))
    assert mean.item() == pytest.approx(figures["loss"], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_all_weights_that_plain_transformers_has_them_for(kind, folders):
    lm = load_model(str(folders[kind]))
    objective, encoded = measured(lm)
    objective.loss(Batch(0, tuple(encoded))).backward()
    mine = {name: p.grad for name, p in lm.model.named_parameters() if p.grad is not None}
    other = load_model(str(folders[kind]))
    losses = [
        other.model(
            input_ids=torch.tensor(e.ids[None], dtype=torch.int64), labels=torch.tensor([e.label])
        ).loss
        for e in encoded
    ]
    torch.stack(losses).mean().backward()
    theirs = {name: p.grad for name, p in other.model.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", ["full", "lean"])
def test_in_bfloat16_the_head_alone_computes_in_float32(kind, memory, folders):
    lm = load_model(str(folders[kind]))
    exact = measured(lm)[0].measure(measured(lm)[1]).labelled()[0]
    identity = Identity(method=ZoSgd(lr=0.1), seed=0, dtype="bfloat16")
    replica = Replica(lm.model, identity, memory=memory)
    objective, encoded = measured(lm, rows=replica.rows)
    scores = objective.measure(encoded).labelled()[0]
    assert not np.array_equal(scores, torch.tensor(scores).bfloat16().float().numpy())
    assert 0 < np.abs(scores - exact).max() < 0.2 * np.abs(exact).max() + 0.1


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_lean_memory_changes_no_bit(kind, folders):
    found = []
    for memory in ("full", "lean"):
        lm = load_model(str(folders[kind]))
        replica = Replica(lm.model, Identity(method=ZoSgd(lr=0.1), seed=0), memory=memory)
        objective, encoded = measured(lm, rows=replica.rows)
        found.append(objective.measure(encoded).labelled()[0])
    assert np.array_equal(*found)


def test_texts_are_framed_and_lose_their_beginning(folders):
    lm = load_model(str(folders["bert"]))
    whole = [list(lm.tokenizer(text).input_ids) for text in TEXTS]
    assert all(ids[0] == 0 and ids[-1] == 1 for ids in whole)
    found = encode(EXAMPLES, TASK, lm.tokenizer, 128, classifier=True)
    assert [list(e.ids) for e in found] == whole
    cut = encode(EXAMPLES, TASK, lm.tokenizer, 10, classifier=True)
    for e, ids in zip(cut, whole, strict=True):
        assert list(e.ids) == (ids if len(ids) <= 10 else [0, *ids[-9:]])
    with pytest.raises(SettingsError):
        encode(EXAMPLES, TASK, lm.tokenizer, 2, classifier=True)
    with pytest.raises(LoadError):
        encode([Example("", 0)], TASK, lm.tokenizer, 10, classifier=True)


def test_the_longest_text_that_is_allowed_is_read(folders):
    for kind in KINDS:
        lm = load_model(str(folders[kind]))
        long = [Example("good " * 300, 1)]
        objective, encoded = measured(lm, long)
        assert len(encoded[0].ids) == 128
        assert objective.measure(encoded).labelled()[0].shape == (1, 2)
        longer = replace(encoded[0], ids=np.append(encoded[0].ids, 5))
        with pytest.raises(SettingsError):
            objective.measure([longer])


def test_an_object_is_the_folder_it_was_loaded_from(folders):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    for kind in KINDS:
        model = AutoModelForSequenceClassification.from_pretrained(folders[kind])
        tokenizer = AutoTokenizer.from_pretrained(folders[kind])
        lm = copy_model(model, tokenizer)
        assert lm.classes == 2
        assert lm.fingerprint == load_model(str(folders[kind])).fingerprint
        assert lm.model is not model


def test_the_fingerprint_tells_apart_what_scores_differently(folders, tmp_path):
    """With another padding id, a Llama may read its scores off another token."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folders["llama"])
    tokenizer = AutoTokenizer.from_pretrained(folders["llama"])
    model.config.pad_token_id = tokenizer("g").input_ids[-1]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    other, lm = load_model(str(tmp_path)), load_model(str(folders["llama"]))
    assert other.fingerprint != lm.fingerprint
    objective, encoded = measured(other)
    found = objective.measure(encoded).labelled()[0]
    assert np.abs(found - plain_scores(tmp_path)).max() < 1e-5


def test_without_a_padding_id_of_its_own_a_model_takes_the_tokenizers(folders):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folders["llama"])
    expected = load_model(str(folders["llama"]))
    model.config.pad_token_id = None
    lm = copy_model(model, AutoTokenizer.from_pretrained(folders["llama"]))
    assert model.config.pad_token_id is None
    assert lm.fingerprint == expected.fingerprint
    objective, encoded = measured(lm)
    assert (
        np.abs(objective.measure(encoded).labelled()[0] - plain_scores(folders["llama"])).max()
        < 1e-5
    )


def test_a_folder_without_a_head_is_refused(folders, tmp_path):
    import json

    from safetensors.torch import load_file, save_file

    save_classifier(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("classifier")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"(?s)classifier\.weight.*num_labels=2.*save_pretrained"):
        load_model(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert names_classifier(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["BertModel"]}))
    assert not names_classifier(str(tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_without_a_head_is_told_how_to_get_one(tmp_path):
    with pytest.raises(LoadError, match="AutoModelForSequenceClassification"):
        load_model(str(save_model(tmp_path, "bert")))


def test_classes_must_be_the_tasks_labels(folders):
    lm = load_model(str(folders["bert"]))
    check_classes(lm, TASK)
    three = replace(TASK, labels=(" a", " b", " c"))
    with pytest.raises(SettingsError, match=r"has 2 classes.*'films' has 3 labels"):
        Objective(lm, three)
    text = Task(name="plain", template="{text}")
    answers = Task(name="asked", template="{a} {b}:", answers=("answer",), answer_tokens=4)
    for task in (text, answers):
        with pytest.raises(SettingsError):
            Objective(lm, task)
    lm.model.config.id2label = {0: "GOOD", 1: "BAD"}
    with pytest.raises(SettingsError, match="order good, bad"):
        Objective(lm, TASK)
    lm.model.config.id2label = {0: "BAD", 1: "GOOD"}
    Objective(lm, TASK)


def test_label_words_may_be_any(folders):
    """They are not looked up: these begin alike, and have tokens beyond any limit."""
    task = replace(TASK, labels=(" 1", " 1 and a half"))
    lm = load_model(str(folders["bert"]))
    encoded = encode(EXAMPLES, task, lm.tokenizer, 10, classifier=True)
    assert Objective(lm, task).measure(encoded).labelled()[0].shape == (5, 2)
