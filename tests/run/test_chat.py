"""Runs whose prompts are turns of a chat."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from hiso import Predictor, evaluate_run, export_adapter, export_model, load, simulate
from hiso.errors import LoadError, RunConflict, SettingsError
from hiso.flower.worker import Worker
from hiso.lab.baselines.baseline_settings import parse_baseline
from hiso.ring.ledger.ledger import Ledger
from hiso.run.settings import parse_settings
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.tasks import get_task

from ..chats import TEMPLATE, make_chat_tokenizer, save_chat_model
from ..process import flags
from ..tiny import make_tokenizer, save_classifier

pytestmark = pytest.mark.usefixtures("one_thread")
TASK = get_task("rotten_tomatoes")
FRAME = {"before": "<s><|user|>\n", "after": "<|end|>\n<|assistant|>\n"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def base(small_run, folder):
    """Settings of a run of two seconds, long enough for any of its reviews."""
    more = {"prompt_style": "chat", "max_length": 64, "rounds": 3, "client_examples": 0}
    return {**small_run, "model": str(folder), **more}


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_run, folder):
    out = tmp_path_factory.mktemp("run") / "run"
    more = {"prompt_style": "chat", "max_length": 64, "rounds": 3}
    return out, simulate(out=out, **{**small_run, "model": str(folder), **more})


@torch.inference_mode()
def plain_scores(place, texts) -> np.ndarray:
    """By transformers alone: the words that begin the assistant's turn, float64 [N, 2]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float64).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    first = [tokenizer(w, add_special_tokens=False).input_ids[0] for w in ("terrible", "great")]
    rows = []
    for text in texts:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{text} It was"}],
            add_generation_prompt=True,
            return_dict=False,
            return_tensors="pt",
        )
        rows.append(model(input_ids=ids).logits[0, -1, first].numpy())
    return np.stack(rows)


def test_a_run_scores_what_the_template_makes_of_its_prompts(run, tmp_path, reviews):
    out, summary = run
    assert evaluate_run(out)["digest"] == summary["digest"]
    export_model(out, tmp_path / "model")
    test = load_examples(TASK, str(reviews)).test
    scores = plain_scores(tmp_path / "model", [e.prompt.removesuffix(" It was") for e in test])
    right = torch.tensor([e.label for e in test])
    loss = torch.nn.functional.cross_entropy(torch.tensor(scores), right)
    assert summary["loss_after"] == pytest.approx(float(loss), abs=1e-5)
    assert summary["accuracy_after"] == np.mean(scores.argmax(1) == right.numpy())


def test_the_identity_has_the_turns_and_that_of_a_plain_run_does_not(run, tmp_path, base):
    out, summary = run
    with Ledger.read(out / "ledger.sqlite") as ledger:
        said = ledger.identity.task
    assert said["chat"] == FRAME
    assert said["labels"] == ["terrible", "great"]
    plain = simulate(out=tmp_path / "plain", **{**base, "prompt_style": "plain"})
    del base["prompt_style"]
    default = simulate(out=tmp_path / "default", **base)
    assert (plain["run"], plain["digest"]) == (default["run"], default["digest"])
    assert plain["run"] != summary["run"]
    assert plain["digest"] != summary["digest"]
    with Ledger.read(tmp_path / "plain" / "ledger.sqlite") as ledger:
        assert "chat" not in ledger.identity.text


def test_another_template_is_another_run(tmp_path, base):
    model = save_chat_model(tmp_path / "model")
    settings = {**base, "model": str(model), "rounds": 1}
    simulate(out=tmp_path / "run", **settings)
    make_chat_tokenizer(TEMPLATE.replace("<|end|>", "<|end|>\n")).save_pretrained(model)
    with pytest.raises(RunConflict, match="chat"):
        simulate(out=tmp_path / "run", **settings, change={"rounds": 2})
    with pytest.raises(RunConflict, match="chat"):
        evaluate_run(tmp_path / "run")


def test_predictions_of_run_and_adapter_are_put_in_the_chat_of_the_run(run, tmp_path, folder):
    out, _ = run
    export_model(out, tmp_path / "model")
    export_adapter(out, tmp_path / "adapter")
    texts = ["film 3 was good", "an awful film"]
    scores = plain_scores(tmp_path / "model", texts)
    odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    for place in (out, tmp_path / "adapter"):
        said = Predictor(load(str(folder), place))([{"text": text} for text in texts])
        found = [list(row["tuned"]["probabilities"].values()) for row in said]
        assert np.abs(np.array(found) - odds).max() < 1e-5
        assert list(said[0]["tuned"]["probabilities"]) == ["neg", "pos"]


def test_the_code_of_the_card_gives_these_scores(run, tmp_path, capsys):
    out, _ = run
    export_model(out, tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code = code.replace('"."', repr(str(tmp_path / "model"))).replace("…", "film 3 was good")
    capsys.readouterr()
    exec(code, {})
    said = json.loads(capsys.readouterr().out.partition("] ")[2])
    (scores,) = plain_scores(tmp_path / "model", ["film 3 was good"])
    assert said == pytest.approx(np.exp(scores) / np.exp(scores).sum(), abs=1e-5)


def test_a_worker_offers_the_same_chat(tmp_path, base):
    worker = Worker(parse_settings(base), tmp_path, own=None, alive=lambda: None)
    identity = json.loads(worker.hello([0], None).facts["identity"])
    assert identity["task"]["chat"] == FRAME


def test_written_answers_are_turns_too(tmp_path, base):
    rows = [
        {"context": f"The film number {i} was long.", "question": "How was it?", "answer": "good"}
        for i in range(40)
    ]
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = {**base, "task": "squad", "data": str(data), "max_length": 120, "rounds": 2}
    summary = simulate(out=tmp_path / "run", **asked)
    assert evaluate_run(tmp_path / "run")["digest"] == summary["digest"]
    assert summary["metrics_after"].keys() == {"loss", "f1", "exact_match"}


def test_the_command_line_has_it(base, hiso):
    asked = [*flags({**base, "rounds": 1}), "--text-column", "text", "--label-column", "critic"]
    done = hiso("run", *asked, "--out", "run", "--json")
    assert done.code == 0, done.err
    with Ledger.read(hiso.folder / "run" / "ledger.sqlite") as ledger:
        assert ledger.identity.task["labels"] == ["a", "b", "c"]
        assert ledger.identity.task["chat"] == FRAME
        assert ledger.settings["task_definition"]["labels"] == {"a": "a", "b": "b", "c": "c"}


def test_what_is_no_conversation_is_refused(tmp_path, small_run, base, reviews):
    out = tmp_path / "run"
    with pytest.raises(LoadError, match="no chat template"):
        simulate(out=out, **{**small_run, "prompt_style": "chat"})
    with pytest.raises(SettingsError, match="free text"):
        simulate(out=out, **{**base, "task": "text"})
    with pytest.raises(SettingsError, match="classifier"):
        simulate(out=out, **{**base, "model": str(save_classifier(tmp_path / "bert", "bert"))})
    with pytest.raises(SettingsError, match="no prompts"):
        simulate(out=out, task="digits", prompt_style="chat", model="mlp")
    with pytest.raises(SettingsError, match="prompt_style"):
        parse_settings({"prompt_style": "chatty"})


def test_baselines_have_it_too():
    settings = parse_baseline({"prompt_style": "chat"})
    assert settings.as_hiso().prompt_style == settings.facts()["prompt_style"] == "chat"
    assert "prompt_style" not in parse_baseline({}).facts()
    assert make_tokenizer().chat_template is None
