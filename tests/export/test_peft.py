"""Adapters of PEFT: that plain PEFT loads what the replica had."""

from __future__ import annotations

import json
import re

import pytest
import torch

from hiso import Predictor, export_peft, load, simulate
from hiso.errors import RunConflict, SettingsError
from hiso.export.adapter import read_run

from ..process import Hiso
from ..tiny import save_classifier, save_model

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # of PEFT
]
IDS = torch.tensor([[5, 6, 7, 9]])
RUNS = {
    "llama": {"train": "lora", "lora_rank": 4, "lora_targets": "q_proj,up_proj"},
    "gpt2": {"train": "lora"},
    "opt": {"train": "ia3"},
    "bert-head": {"train": "lora", "lora_alpha": 4},
    "distilbert-head": {"train": "lora", "lora_targets": "q_lin"},
    "llama-head": {"train": "ia3"},
}


def save(folder, name):
    kind, _, head = name.partition("-")
    return save_classifier(folder, kind) if head else save_model(folder, kind)


@pytest.mark.parametrize("name", RUNS)
@torch.inference_mode()
def test_plain_peft_gives_the_scores_of_the_run(tmp_path, base, name):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    model = save(tmp_path / "base", name)
    auto = AutoModelForSequenceClassification if "-" in name else AutoModelForCausalLM
    given = base | RUNS[name] | {"model": str(model), "rounds": 2, "lr": 0.05}
    with torch.inference_mode(False):
        summary = simulate(out=tmp_path / "run", **given)
        done = export_peft(tmp_path / "run", tmp_path / "peft")
        tuned = load(None, tmp_path / "run", merge=False).model
        merged = load(None, tmp_path / "run").model
        plain = auto.from_pretrained(model)
    assert (done["digest"], done["position"]) == (summary["digest"], 2)
    before = plain(input_ids=IDS).logits
    theirs = PeftModel.from_pretrained(plain, tmp_path / "peft").eval()
    scores = theirs(input_ids=IDS).logits
    assert torch.equal(scores, tuned(input_ids=IDS).logits)
    assert torch.allclose(scores, merged(input_ids=IDS).logits, atol=1e-5)
    assert not torch.allclose(scores, before, atol=1e-3)


def test_the_folder_is_small_and_its_card_runs(tmp_path, base, tiny_model, capsys):
    simulate(out=tmp_path / "run", **base, train="lora")
    done = export_peft(tmp_path / "run", tmp_path / "peft", position=4)
    assert (tmp_path / "peft" / "adapter_model.safetensors").stat().st_size < 10_000
    assert done["position"] == 4
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 64)
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["base_model_name_or_path"] is None
    card = (tmp_path / "peft" / "README.md").read_text()
    assert str(tiny_model) not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    code = code.replace("BASE MODEL", str(tiny_model)).replace('"."', repr(done["folder"]))
    capsys.readouterr()
    exec(code.replace("…", "A lovely film."), {})
    told = json.loads(capsys.readouterr().out.rpartition("] ")[2])
    tuned = load(None, read_run(tmp_path / "run", 4))
    (said,) = Predictor(tuned)([{"text": "A lovely film."}])
    assert told == pytest.approx(list(said["tuned"]["probabilities"].values()), abs=1e-5)


def test_what_is_no_adapter_of_peft_is_refused(tmp_path, run, base):
    with pytest.raises(SettingsError, match="trained full"):
        export_peft(run, tmp_path / "peft")
    simulate(out=tmp_path / "run", **base | {"rounds": 1}, train="norm")
    with pytest.raises(SettingsError, match="trained norm"):
        export_peft(tmp_path / "run", tmp_path / "peft")
    with pytest.raises(RunConflict, match="not empty"):
        export_peft(tmp_path / "run", tmp_path / "run")
    assert not (tmp_path / "peft").exists()


def test_the_command(tmp_path, base):
    simulate(out=tmp_path / "run", **base | {"rounds": 1}, train="lora")
    hiso = Hiso(tmp_path)
    done = hiso("export", "run", "--peft", "peft", "--json")
    assert (done.code, done.err) == (0, "")
    assert (tmp_path / "peft" / "adapter_model.safetensors").exists()
    assert hiso("export", "run", "--peft", "a", "--model", "b").code == 2
    assert hiso("export", "run").code == 2
