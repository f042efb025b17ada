"""Runs of objects, and runs that are opened again."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from torch import nn

import hiso
from hiso import HiSo, Task, evaluate_run, open_run, simulate
from hiso.core.replica.replica import Replica
from hiso.errors import LoadError, ProtocolError, RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.launch import launch
from hiso.run.workload.objects import NOTHING, Objects
from hiso.run.workload.text import describe_model
from hiso.workloads.text.examples import load_examples, split_rows
from hiso.workloads.text.models import copy_model
from hiso.workloads.text.tasks import get_task

from ..tiny import make_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
STARS = Task(name="stars", template="{text} It was", labels=(" terrible", " great"))


@pytest.fixture
def rows(reviews) -> list[dict[str, Any]]:
    with reviews.open() as file:
        return [{**row, "label": int(row["label"])} for row in csv.DictReader(file)]


@pytest.fixture
def objects(tiny_model, rows) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return {
        "model": AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        "tokenizer": AutoTokenizer.from_pretrained(tiny_model),
        "task": replace(get_task("rotten_tomatoes"), source=None),
        "data": rows,
    }


@pytest.fixture
def rest(base) -> dict[str, Any]:
    """Settings that name neither model nor data."""
    return {key: value for key, value in base.items() if key not in ("model", "data")}


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_of_objects_is_the_run_of_the_same_by_name(tmp_path, base, objects, rest):
    before = weights(objects["model"])
    named = simulate(out=tmp_path / "named", **base)
    own = simulate(out=tmp_path / "own", **objects, **rest)
    same_keys = ("run", "chain", "digest", "metrics_after", "bytes_up", "bytes_down")
    assert [own[key] for key in same_keys] == [named[key] for key in same_keys]
    assert own["settings"] == named["settings"] | {
        "model": "own:LlamaForCausalLM",
        "task": "own:rotten_tomatoes",
        "data": "own:list",
    }
    assert same(weights(objects["model"]), before)  # a copy was trained
    assert objects["tokenizer"].pad_token is None
    assert evaluate_run(tmp_path / "own", **objects)["digest"] == own["digest"]


@pytest.mark.parametrize("kept", ["model", "task", "data"])
def test_each_may_be_an_object_by_itself(tmp_path, base, objects, kept):
    base |= {"rounds": 2}
    given = {kept: objects[kept]}
    if kept == "model":
        given["tokenizer"] = objects["tokenizer"]
    named, mixed = (
        simulate(out=tmp_path / "a", **base),
        simulate(out=tmp_path / "b", **base | given),
    )
    assert (mixed["run"], mixed["digest"]) == (named["run"], named["digest"])


def test_a_run_of_objects_goes_on_with_the_same_objects_alone(tmp_path, objects, rest):
    out, whole = tmp_path / "run", simulate(out=tmp_path / "whole", **objects, **rest)
    simulate(out=out, **objects, **rest | {"rounds": 3})
    longer = {"change": {"rounds": 6}}
    for missing in ("model", "task", "data"):
        fewer = {key: value for key, value in objects.items() if key != missing}
        fewer.pop("tokenizer") if missing == "model" else None
        with pytest.raises(LoadError, match=rf"^{missing} = own:.*only with the same objects"):
            simulate(out=out, **fewer, **longer)
    with pytest.raises(LoadError):  # as the command line does
        launch({}, out, changes={"rounds": 6})
    other = copy.deepcopy(objects["model"])
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    for changed in (
        {"model": other},
        {"data": objects["data"][:-1]},
        {"task": replace(objects["task"], labels=(" bad", " good"))},
        {"task": STARS},
        {"data": {"train": objects["data"]}},
    ):
        with pytest.raises(RunConflict):
            simulate(out=out, **objects | changed, **longer)
    assert simulate(out=out, **objects, **longer)["digest"] == whole["digest"]


def test_what_is_frozen_stays_and_is_part_of_the_run(tmp_path, objects, rest):
    rest |= {"rounds": 2}
    whole = simulate(out=tmp_path / "whole", **objects, **rest)
    objects["model"].get_input_embeddings().weight.requires_grad_(False)
    part = simulate(out=tmp_path / "part", **objects, **rest)
    assert part["trainable_weights"] == whole["trainable_weights"] - 400 * 32
    assert part["run"] != whole["run"]
    given = {key: objects[key] for key in ("model", "tokenizer")}
    trained = open_run(tmp_path / "part", **given).model
    lm = copy_model(**given)
    assert describe_model(lm, NOTHING).keys() == {"fingerprint"}  # as it was for names
    assert describe_model(lm, Objects(**given)).keys() == {"fingerprint", "trained"}
    frozen = trained.get_input_embeddings().weight
    assert torch.equal(frozen, objects["model"].get_input_embeddings().weight)
    assert not torch.equal(trained.lm_head.weight, objects["model"].lm_head.weight)


def test_rows_of_every_kind_are_split_alike(reviews, rows):
    from datasets import Dataset, DatasetDict

    task = get_task("rotten_tomatoes")
    expected = load_examples(task, str(reviews), group_column="critic")
    for data in (
        rows,
        tuple(rows),
        {"train": rows},
        Dataset.from_list(rows),
        DatasetDict({"train": Dataset.from_list(rows)}),
    ):
        found = split_rows(task, data, group_column="critic")
        assert found.fingerprint == expected.fingerprint
    train, test = rows[:60], rows[60:]
    two = split_rows(task, {"train": train, "test": test})
    assert [e.prompt for e in two.test] == [task.prompt(row) for row in test]
    sets = {"train": Dataset.from_list(train), "validation": Dataset.from_list(test)}
    assert split_rows(task, sets).fingerprint == two.fingerprint


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"text": "a", "label": 7}, {"text": "b"}, {"text": "", "label": 0}], "3 problems"),
        ([{"text": "a", "label": 0}, {"label": 0}], "row 1"),
        (["a", "b"], "is a list"),
        (7, "is a int"),
        ({"test": []}, "it needs 'train'"),
        ([], "no"),
    ],
    ids=["rows", "column", "strings", "number", "parts", "empty"],
)
def test_rows_that_are_none_are_refused_with_their_numbers(data, words):
    with pytest.raises(LoadError, match=words):
        split_rows(get_task("rotten_tomatoes"), data)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"tokenizer": None}, SettingsError),
        ({"model": nn.Linear(2, 2)}, LoadError),
        ({"tokenizer": "a tokenizer"}, LoadError),
        ({"model": "halved"}, LoadError),
        ({"task": "digits", "data": None}, SettingsError),
        ({"task": "own:stars"}, LoadError),
        ({"model": None, "tokenizer": None, "task": STARS, "data": None}, LoadError),
        ({"method": HiSo()}, SettingsError),
    ],
    ids=["no tokenizer", "module", "text", "bf16", "images", "name", "no data", "lr twice"],
)
def test_objects_that_will_not_do_leave_no_folder(tmp_path, objects, rest, wrong, kind):
    if wrong.get("model") == "halved":
        wrong = {"model": copy.deepcopy(objects["model"]).bfloat16()}
    with pytest.raises(kind):
        simulate(out=tmp_path / "run", **objects | rest | wrong)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_opened_has_the_model_of_every_position(tmp_path, base):
    out = tmp_path / "run"
    summary = simulate(out=out, **base, snapshot_every=2)
    run = open_run(out)
    assert run.summary == summary
    assert (run.run, run.position) == (summary["run"], 6)
    assert run.settings == summary["settings"]
    for position in (0, 1, 4, 6):
        found = run.at(position)
        base_model = open_run(out).at(0)
        fresh = hiso.replay(out / "ledger.sqlite", base_model, position=position)
        assert same(weights(found), weights(fresh.release()))
        assert found.dtype == torch.float32
        assert not found.training
    with Ledger.read(out / "ledger.sqlite") as ledger:
        last = Replica(run.at(0), ledger.identity)
        last.replay(ledger.records())
    assert f"{last.digest():016x}" == summary["digest"]
    assert same(weights(run.model), weights(last.release()))
    assert run.model is run.model
    for position in (-1, 7):
        with pytest.raises(ProtocolError):
            run.at(position)


def test_the_metrics_of_a_run_are_a_table(tmp_path, base, monkeypatch):
    out = tmp_path / "run"
    summary = simulate(out=out, **base)
    table = open_run(out).metrics
    assert isinstance(table, pandas.DataFrame)
    rounds = table[table["kind"] == "round"]
    assert list(rounds["round"]) == list(range(6))
    assert rounds["bytes_up"].sum() == summary["bytes_up"]
    tests = table[table["split"] == "test"]
    assert list(tests["loss"]) == [summary["loss_before"], summary["loss_after"]]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    plain = open_run(out).metrics
    assert [line["kind"] for line in plain] == list(table["kind"])


def test_a_run_that_is_opened_writes_text(tmp_path, base):
    simulate(out=tmp_path / "run", **base | {"rounds": 2})
    run = open_run(tmp_path / "run")
    assert run.tokenizer is not None
    prompt = run.tokenizer("The film was", return_tensors="pt")
    written = run.model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > prompt["input_ids"].shape[1]
    assert run.tokenizer.get_vocab() == make_tokenizer().get_vocab()


def test_images_are_opened_too(tmp_path):
    settings = {"task": "digits", "model": "mlp", "rounds": 3, "eval_every": 0}
    summary = simulate(out=tmp_path / "run", test_examples=16, **settings)
    run = open_run(tmp_path / "run")
    assert run.tokenizer is None
    late = hiso.replay(tmp_path / "run" / "ledger.sqlite", run.at(0))
    assert f"{late.digest():016x}" == summary["digest"]
    assert same(weights(run.at(3)), weights(late.release()))


def test_a_run_that_goes_on_is_opened_as_it_stands(tmp_path, base):
    out = tmp_path / "run"
    simulate(out=out, **base | {"rounds": 2})
    run = open_run(out)
    simulate(out=out, change={"rounds": 4}, **base | {"rounds": 2})
    assert run.position == 2
    assert same(weights(run.model), weights(open_run(out).at(2)))
    assert open_run(out).position == 4


def test_what_is_no_run_cannot_be_opened(tmp_path, base, objects):
    with pytest.raises(ProtocolError):
        open_run(tmp_path)
    simulate(out=tmp_path / "run", **base | {"rounds": 1})
    given = {key: objects[key] for key in ("model", "tokenizer")}
    assert same(weights(open_run(tmp_path / "run", **given).model),
                weights(open_run(tmp_path / "run").model))  # fmt: skip
    with torch.no_grad():
        next(objects["model"].parameters())[0, 0] += 1
    with pytest.raises(RunConflict):
        open_run(tmp_path / "run", **given).at(0)


def test_a_run_of_the_federation_has_figures_but_its_module_is_the_users(tmp_path):
    module = nn.Linear(2, 2)
    with hiso.Federation(
        module,
        HiSo(lr=0.01),
        loss=lambda m, b: m(b).square().mean(),
        shards=[[torch.ones(2)]],
        batch_size=1,
        sample=1,
        directions=1,
        mu=1e-2,
        ledger=tmp_path / "run" / "ledger.sqlite",
    ) as fed:
        list(fed.rounds(2))
    run = open_run(Path(tmp_path / "run"))
    assert list(run.metrics["round"]) == [0, 1]
    with pytest.raises(ProtocolError, match=r"hiso\.replay"):
        run.at(1)
