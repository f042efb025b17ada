"""Exported models: that plain transformers loads what the replica had."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hiso import (
    Predictor,
    evaluate_run,
    export_adapter,
    export_model,
    load,
    open_run,
    simulate,
)
from hiso.export.out import apply
from hiso.run.workload.base import EVAL_BATCH
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.metrics import evaluate
from hiso.workloads.text.models import load_model
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task

from ..tiny import save_model

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = get_task("rotten_tomatoes")


@pytest.fixture(scope="module")
def exported(tmp_path_factory, run) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_model(run, folder)
    return folder


@pytest.fixture
def test_rows(reviews):
    """The reporting split of the run, and the same as token ids."""
    examples = load_examples(TASK, str(reviews)).test
    return lambda tokenizer: encode(examples, TASK, tokenizer, 24)


@torch.inference_mode()
def plain_scores(model, tokenizer, ids) -> np.ndarray:
    """Scores of the label words, of one example after the other, by transformers alone."""
    first = [tokenizer(w, add_special_tokens=False).input_ids[0] for w in TASK.labels]
    rows = [model(torch.tensor(i[None])).logits[0, -1, first] for i in ids]
    return torch.stack(rows).numpy()


def test_plain_transformers_gives_the_scores_and_the_accuracy_of_the_run(run, exported, test_rows):
    """Weights are equal. Scores of batches and of single examples differ in rounding."""
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert model.dtype == torch.float32
    mine = open_run(run).model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in model.state_dict().items())
    encoded = test_rows(tokenizer)
    scores = plain_scores(model, tokenizer, [e.ids.astype(np.int64) for e in encoded])
    objective = Objective(load_model(str(exported)), TASK)
    assert np.abs(scores - objective.measure(encoded).labelled()[0]).max() < 1e-5
    accuracy = np.mean(scores.argmax(1) == [e.label for e in encoded])
    assert accuracy == evaluate_run(run)["accuracy"]


@pytest.mark.parametrize("position", [0, 3, 6])
def test_any_position_is_the_run_at_that_position(tmp_path, run, test_rows, position):
    """In float32 all metrics are equal to the last bit."""
    done = export_model(run, tmp_path / "model", position=position)
    expected = evaluate_run(run, position=position)
    lm = load_model(done["folder"])
    metrics = evaluate(Objective(lm, TASK), test_rows(lm.tokenizer), EVAL_BATCH)
    assert metrics == {name: expected[name] for name in metrics}
    assert (done["digest"], done["run"]) == (expected["digest"], expected["run"])
    assert done["bytes"] == sum(p.stat().st_size for p in (tmp_path / "model").iterdir())


@pytest.mark.parametrize("kind", ["gemma2", "opt", "gpt2"])
def test_tied_weights_stay_tied(tmp_path, base, kind):
    model = str(save_model(tmp_path / kind, kind))
    simulate(out=tmp_path / "run", **base | {"model": model, "rounds": 2})
    export_model(tmp_path / "run", tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    mine = open_run(tmp_path / "run").model
    for one in (mine, again):
        assert one.get_input_embeddings().weight is one.get_output_embeddings().weight
    assert all(torch.equal(a, again.state_dict()[name]) for name, a in mine.state_dict().items())


def test_apply_gives_the_files_of_the_run(tmp_path, exported, adapter, tiny_model):
    done = apply(adapter, tmp_path / "model", base=tiny_model)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()
    assert f"{load(tiny_model, adapter).digest:016x}" == done["digest"]


def test_a_half_precision_run_is_exported_in_float32(tmp_path, base):
    settings = {"method": "zo_sgd", "dtype": "bfloat16", "mu": 1e-2, "rounds": 2}
    simulate(out=tmp_path / "run", **base | settings)
    export_model(tmp_path / "run", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    mine = open_run(tmp_path / "run").model.state_dict()
    assert model.dtype == torch.float32
    assert all(torch.equal(mine[name], tensor) for name, tensor in model.state_dict().items())


def example_of(card: str, folder: Path, text: str, capsys) -> list[float]:
    """What the example of a model card prints for a text."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    capsys.readouterr()
    exec(code.replace('"."', repr(str(folder))).replace("…", text), {})
    return json.loads(capsys.readouterr().out.replace("'", '"').rpartition("] ")[2])


def labelled_rows(reviews: Path) -> list[dict[str, str]]:
    """The rows of the reporting split."""
    prompts = {e.prompt for e in load_examples(TASK, str(reviews)).test}
    with reviews.open() as file:
        return [row for row in csv.DictReader(file) if TASK.prompt(row) in prompts]


def test_the_cards_example_runs_and_agrees(exported, tiny_model, adapter, capsys):
    card = (exported / "README.md").read_text()
    told = example_of(card, exported, "A lovely film.", capsys)
    (said,) = Predictor(load(tiny_model, adapter))([{"text": "A lovely film."}])
    assert told == pytest.approx(list(said["tuned"]["probabilities"].values()), abs=1e-5)


def test_label_biases_are_part_of_the_model(tmp_path, base, reviews, tiny_model, capsys):
    """Predictions, the metrics of the run, and the card's example all have them."""
    settings = {"method": "subspace_newton", "lr": 0.5, "label_bias": True}
    simulate(out=tmp_path / "run", **base | settings)
    evaluated = evaluate_run(tmp_path / "run")
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    done = apply(tmp_path / "adapter", tmp_path / "model", base=tiny_model)
    assert done["label_bias"] == evaluated["label_bias"]
    tuned = load(tiny_model, tmp_path / "adapter", keep_base=True)
    plain = Predictor(replace(tuned, biases=None))
    rows = labelled_rows(reviews)
    said = Predictor(tuned)(rows)
    right = [TASK.classes[int(row["label"])] for row in rows]
    told = [one["tuned"]["probabilities"] for one in said]
    losses = [-np.log(each[name]) for each, name in zip(told, right, strict=True)]
    assert np.mean(losses) == pytest.approx(evaluated["loss"], rel=1e-5)
    without = plain(rows)
    assert without != said
    assert [one["base"] for one in without] == [one["base"] for one in said]
    card = (tmp_path / "model" / "README.md").read_text()
    assert example_of(card, tmp_path / "model", rows[0]["text"], capsys) == pytest.approx(
        list(told[0].values()), abs=1e-5
    )


def test_the_card_tells_data_method_metrics_and_digest(run, exported, reviews, tiny_model):
    card = (exported / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    for words in ("reviews.csv", "`hiso`", "6 rounds", summary["digest"], summary["chain"]):
        assert words in card
    assert f"| test | 6 | accuracy | {summary['accuracy_after']:.4g} |" in card
    for name in ("README.md", "config.json", "tokenizer_config.json"):
        text = (exported / name).read_text()
        assert str(tiny_model) not in text
        assert str(reviews.parent) not in text


def test_predictions_are_those_that_were_evaluated(tmp_path, run, reviews, tiny_model, adapter):
    """Rows of the reporting split, given as rows, get the labels that its accuracy counts."""
    rows = labelled_rows(reviews)
    said = Predictor(load(tiny_model, adapter, keep_base=True))(rows)
    right = [int(row["label"]) for row in rows]
    for name, position in (("tuned", 6), ("base", 0)):
        labels = [TASK.classes.index(one[name]["label"]) for one in said]
        accuracy = np.mean(np.equal(labels, right))
        assert accuracy == evaluate_run(run, position=position)["accuracy"]
    assert [one["input"] for one in said] == rows
