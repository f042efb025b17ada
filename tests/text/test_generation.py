import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch

from hiso.core.method.registry import ZoSgd
from hiso.core.replica.replica import Replica
from hiso.errors import SettingsError
from hiso.workloads.text.generation import stop_tokens, write_answers
from hiso.workloads.text.models import load_model
from hiso.workloads.text.verbalizer import prefix, tokens

from ..identities import identity_of
from ..tiny import save_model

PROMPTS = [
    "The film was",
    "What a terrible plot, it was very bad and very long. Question: Proposed answer:",
    "x",
    "Does this mean that the following is true? Answer:",
]


def prompts_of(lm):
    return [
        np.array(prefix(lm.tokenizer) + tokens(lm.tokenizer, text), np.int32) for text in PROMPTS
    ]


@torch.inference_mode()
def loop(lm, prompt, count, stops=frozenset()):
    """The likeliest tokens, from whole forward passes over one sequence."""
    ids = prompt.tolist()
    for _ in range(count):
        best = int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if best in stops:
            break
        ids.append(best)
    return ids[len(prompt) :]


def text_of(lm, ids):
    return lm.tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "gemma2", "cohere", "granite"])
def test_it_writes_what_a_plain_loop_writes(kind, tmp_path, capfd):
    lm = load_model(str(save_model(tmp_path, kind, begin=kind == "opt")))
    stops, prompts = stop_tokens(lm), prompts_of(lm)
    capfd.readouterr()
    written = write_answers(lm, prompts, 10, stops)
    assert capfd.readouterr() == ("", "")
    assert written == [text_of(lm, loop(lm, prompt, 10, stops)) for prompt in prompts]
    assert all(written)
    assert [write_answers(lm, [prompt], 10, stops)[0] for prompt in prompts] == written


def test_it_is_bounded_and_ends_before_the_first_stop(llama):
    prompts = prompts_of(llama)
    freely = [loop(llama, prompt, 8) for prompt in prompts]
    assert write_answers(llama, prompts, 8, frozenset()) == [text_of(llama, i) for i in freely]
    stops = frozenset({freely[0][3], freely[1][0]})
    cut = [loop(llama, prompt, 8, stops) for prompt in prompts]
    assert len(cut[0]) <= 3
    assert cut[1] == []
    assert write_answers(llama, prompts, 8, stops) == [text_of(llama, ids) for ids in cut]


def test_an_answer_ends_at_end_tokens_and_line_breaks(llama):
    tokenizer = llama.tokenizer
    breaks = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
    assert breaks == set(tokens(tokenizer, "\n"))
    assert stop_tokens(llama) == breaks | {tokenizer.eos_token_id}
    other = dataclasses.replace(llama, model=copy.deepcopy(llama.model))
    other.model.generation_config.eos_token_id = [7, 9]
    assert stop_tokens(other) == breaks | {tokenizer.eos_token_id, 7, 9}
    other.model.generation_config.eos_token_id = None
    assert stop_tokens(other) == breaks | {tokenizer.eos_token_id}


def test_the_models_own_generation_settings_do_not_count(llama):
    prompts, stops = prompts_of(llama), stop_tokens(llama)
    written = write_answers(llama, prompts, 10, stops)
    first = loop(llama, prompts[0], 1)[0]
    other = dataclasses.replace(llama, model=copy.deepcopy(llama.model))
    own = other.model.generation_config
    for name, value in {
        "do_sample": True,
        "temperature": 5.0,
        "num_beams": 3,
        "repetition_penalty": 9.0,
        "no_repeat_ngram_size": 1,
        "suppress_tokens": [first],
        "max_length": 3,
        "forced_bos_token_id": 5,
        "use_cache": False,
    }.items():
        setattr(own, name, value)
    before = own.to_dict()
    state = torch.get_rng_state()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert write_answers(other, prompts, 10, stops) == written
    assert caught == []
    assert torch.equal(torch.get_rng_state(), state)
    assert other.model.generation_config is own
    assert own.to_dict() == before


def test_padding_changes_nothing(llama):
    prompts, stops = prompts_of(llama), stop_tokens(llama)
    other = dataclasses.replace(llama, tokenizer=copy.deepcopy(llama.tokenizer))
    other.tokenizer.pad_token = "<s>"
    assert other.tokenizer.pad_token_id != llama.tokenizer.pad_token_id
    assert write_answers(other, prompts, 10, stops) == write_answers(llama, prompts, 10, stops)


def test_what_does_not_fit_the_context_is_refused(opt):
    prompt = np.zeros(120, np.int32)
    write_answers(opt, [prompt], 8, frozenset())
    with pytest.raises(SettingsError, match="a prompt of 120 tokens and an answer of 9 are more"):
        write_answers(opt, [prompt], 9, frozenset())


@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replica_writes_as_its_compute_copy_does(tmp_path, memory, dtype):
    lm = load_model(str(save_model(tmp_path, "llama")))
    plain = dataclasses.replace(lm, model=copy.deepcopy(lm.model))
    for parameter in plain.model.parameters():
        parameter.data = parameter.data.to(dtype)
    prompts, stops = prompts_of(lm), stop_tokens(lm)
    replica = Replica(lm.model, identity_of(ZoSgd(), dtype=dtype), memory=memory)
    replica.write()
    assert write_answers(lm, prompts, 6, stops) == write_answers(plain, prompts, 6, stops)


@pytest.mark.model
def test_the_packaged_model_writes_answers(smollm2):
    stops = stop_tokens(smollm2)
    assert smollm2.tokenizer.eos_token_id in stops
    assert {tokens(smollm2.tokenizer, text)[-1] for text in ("\n", "\n\n", "x.\n")} <= stops
    prompts = [
        np.array(tokens(smollm2.tokenizer, text), np.int32)
        for text in (
            "Paris is the capital of France.\nQuestion: What is the capital of France?\nAnswer:",
            "Two and two are",
        )
    ]
    written = write_answers(smollm2, prompts, 6, stops)
    assert written == [text_of(smollm2, loop(smollm2, prompt, 6, stops)) for prompt in prompts]
    assert "Paris" in written[0]
