"""Runs whose model has a classification head."""

from __future__ import annotations

import json
import tomllib

import numpy as np
import pytest
import torch

from hiso import (
    Predictor,
    SubspaceNewton,
    evaluate_run,
    export_adapter,
    export_model,
    load,
    open_run,
    simulate,
)
from hiso.core.identity import Identity
from hiso.errors import SettingsError
from hiso.export.out import apply
from hiso.lab.baselines.baseline_run import train
from hiso.ring.ledger.ledger import Ledger
from hiso.run.settings import parse_settings
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.models import load_model
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task

from ..process import flags
from ..tiny import save_classifier

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = ["bert", "llama"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    return {kind: save_classifier(folder / kind, kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def base(request, small_run, folders) -> dict:
    return {**small_run, "model": str(folders[request.param])}


@torch.inference_mode()
def plain_scores(model, tokenizer, texts: list[str]) -> np.ndarray:
    """Of one short text after the other, by transformers alone."""
    inputs = [torch.tensor([tokenizer(text).input_ids]) for text in texts]
    return np.stack([model(input_ids=ids).logits[0].numpy() for ids in inputs])


def test_a_run_ends_in_the_model_that_transformers_loads(tmp_path, base, reviews):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    summary = simulate(out=tmp_path / "run", **base)
    assert summary["rounds"] == 6
    figures = evaluate_run(tmp_path / "run")
    assert figures["digest"] == summary["digest"]
    assert figures["accuracy"] == summary["accuracy_after"]

    done = export_model(tmp_path / "run", tmp_path / "model")
    assert done["digest"] == summary["digest"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    mine = open_run(tmp_path / "run").model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in model.state_dict().items())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForCausalLM" not in card

    task = get_task("rotten_tomatoes")
    examples = load_examples(task, str(reviews)).test
    encoded = encode(examples, task, tokenizer, 24, classifier=True)
    texts = [tokenizer.decode(e.ids, skip_special_tokens=True) for e in encoded]
    whole = [list(e.ids) == tokenizer(t).input_ids for e, t in zip(encoded, texts, strict=True)]
    assert any(whole)
    scores = plain_scores(model, tokenizer, texts)
    found = Objective(load_model(str(tmp_path / "model")), task).measure(encoded).labelled()[0]
    assert np.abs(scores - found)[whole].max() < 1e-5

    tuned = load(base["model"], tmp_path / "run", keep_base=True)
    (said,) = Predictor(tuned)([{"text": "good"}])
    logits = plain_scores(model, tokenizer, [task.prompt({"text": "good"})])[0]
    expected = torch.tensor(logits).double().softmax(0).tolist()
    assert said["tuned"]["probabilities"] == pytest.approx(
        dict(zip(("neg", "pos"), expected, strict=True)), abs=1e-5
    )
    assert said["base"].keys() == said["tuned"].keys()

    export_adapter(tmp_path / "run", tmp_path / "adapter")
    made = apply(tmp_path / "adapter", tmp_path / "again", base=base["model"])
    assert made["digest"] == summary["digest"]


def test_the_code_of_the_model_card_runs(tmp_path, base, monkeypatch, capsys):
    simulate(out=tmp_path / "run", **base | {"rounds": 1})
    export_model(tmp_path / "run", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path / "model")
    exec(code, {})
    assert "terrible" in capsys.readouterr().out


def test_a_run_goes_on_to_the_same_digest(tmp_path, base):
    whole = simulate(out=tmp_path / "whole", **base)
    simulate(out=tmp_path / "parts", **base | {"rounds": 3})
    parts = simulate(out=tmp_path / "parts", change={"rounds": 6})
    assert (parts["chain"], parts["digest"]) == (whole["chain"], whole["digest"])


@pytest.mark.parametrize(
    "more",
    [
        {"method": "subspace_newton", "lr": None, "label_bias": True},
        {"method": "subspace_newton", "lr": None, "directions": 4},
        {"logit_adjustment": True, "partition": "dirichlet"},
        {"dtype": "bfloat16", "mu": 5e-3},
        {"dtype": "bfloat16", "mu": 5e-3, "memory": "lean"},
        {"memory": "lean"},
        {"joint": False},
        {"backward_clients": 2},
        {"backward_clients": 4, "dtype": "bfloat16", "mu": 5e-3},
        {"method": "hizoo"},
    ],
    ids=lambda more: "-".join(map(str, more)),
)
def test_every_way_to_run_comes_back_by_replay(tmp_path, base, more):
    given = {k: v for k, v in (base | more | {"rounds": 3}).items() if v is not None}
    summary = simulate(out=tmp_path / "run", **given)
    figures = evaluate_run(tmp_path / "run")
    assert figures["digest"] == summary["digest"]
    assert figures["accuracy"] == summary["accuracy_after"]
    done = export_model(tmp_path / "run", tmp_path / "model")
    assert done["digest"] == summary["digest"]
    assert ("label_bias" in done) == ("label_bias" in more)


def test_an_object_runs_as_its_folder_does(tmp_path, base):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    named = simulate(out=tmp_path / "named", **base)
    objects = {
        "model": AutoModelForSequenceClassification.from_pretrained(base["model"]),
        "tokenizer": AutoTokenizer.from_pretrained(base["model"]),
    }
    own = simulate(out=tmp_path / "own", **base | objects)
    assert (own["run"], own["digest"]) == (named["run"], named["digest"])
    assert own["settings"]["model"].endswith("ForSequenceClassification")


def test_it_learns(tmp_path, base):
    given = base | {"method": SubspaceNewton(), "rounds": 20, "directions": 8}
    given.pop("lr")
    summary = simulate(out=tmp_path / "run", **given)
    assert summary["metrics_after"]["loss"] < 0.9 * summary["metrics_before"]["loss"]


@pytest.mark.parametrize("task", ["text", "squad", "cb"])
def test_tasks_without_those_labels_are_refused(tmp_path, base, task):
    rows = [
        {"text": f"t {i}", "context": f"c {i}", "question": "q", "answers": "a"}
        | {"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3}
        for i in range(40)
    ]
    with pytest.raises(SettingsError):
        simulate(out=tmp_path / "run", **base | {"task": task, "data": rows})


def test_two_columns_make_a_task_of_plain_texts(tmp_path, folders, small_run, hiso):
    """Label words are the values themselves, even if they begin alike."""
    model = save_classifier(tmp_path / "three", "bert", classes=3)
    data = tmp_path / "own.csv"
    lines = [f"film {i} was {['good', 'bad', 'fine'][i % 3]},{i % 3 + 100}" for i in range(90)]
    data.write_text("\n".join(["text,stars", *lines]) + "\n")
    given = {**small_run, "model": str(model), "data": str(data)}
    columns = ("--text-column", "text", "--label-column", "stars")
    done = hiso("run", *flags(given), *columns, "--out", "run")
    assert done.code == 0, done.err
    printed = done.err[done.err.index("[task_definition]") : done.err.index("position ")]
    table = tomllib.loads(printed)["task_definition"]
    assert table == {
        "text_column": "text",
        "template": "{text}",
        "label_column": "stars",
        "labels": {str(100 + i): str(100 + i) for i in range(3)},
    }
    predicted = hiso("predict", "run", "--text", "film 3 was good", "--json")
    assert predicted.code == 0, predicted.err
    exported = hiso("export", "run", "--model", "model", "--json")
    assert exported.code == 0, exported.err
    assert exported.json["digest"] == hiso("eval", "run", "--json").json["digest"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    two = hiso("run", *flags(given | {"model": str(folders["bert"])}), *columns, "--out", "two")
    assert two.code == 2, two.err
    assert "2 classes" in two.err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_backward_clients_answer_as_by_differences(tmp_path, base, dtype):
    base |= {"eval_every": 0, "rounds": 1, "dtype": dtype, "directions": 6}
    base |= {"scheme": "central", "mu": 1e-3 if dtype == "float32" else 5e-3}
    simulate(out=tmp_path / "a", **base)
    simulate(out=tmp_path / "b", backward_clients=4, **base)
    found = []
    for run in ("a", "b"):
        with Ledger.read(tmp_path / run / "ledger.sqlite") as ledger:
            found += [record.coefficient for record in ledger.records()]
    near, exact = found
    apart = np.linalg.norm(near - exact)
    assert apart < (0.02 if dtype == "float32" else 0.2) * np.linalg.norm(exact)


def test_averaged_weights_are_trained_too(tmp_path, base):
    given = {key: base[key] for key in ("model", "data", "max_length", "eval_every")}
    given |= {"method": "fedavg", "lr": 0.02, "rounds": 20, "clients": 2, "batch_size": 16}
    summary = train(given, tmp_path / "run")
    assert summary["metrics_after"]["loss"] < summary["metrics_before"]["loss"]


def test_a_worker_has_the_model_of_the_simulation(tmp_path, base):
    pytest.importorskip("flwr")
    from hiso.flower.worker import Worker

    simulate(out=tmp_path / "run", **base | {"rounds": 1})
    with Ledger.read(tmp_path / "run" / "ledger.sqlite") as ledger:
        identity = ledger.identity
    worker = Worker(parse_settings(base), tmp_path, own=None, alive=lambda: None, probe="forward")
    told = Identity.parse(worker.hello([0], None).facts["identity"])
    assert (told.model, told.task) == (identity.model, identity.task)
    worker.close()
