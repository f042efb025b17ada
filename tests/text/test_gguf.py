"""Models from GGUF files against the models that the files were made of."""

from __future__ import annotations

import pytest
import torch

from hiso.workloads.text.chat import read_chat
from hiso.workloads.text.encode import encode
from hiso.workloads.text.gguf import parsed_once, set_special_tokens
from hiso.workloads.text.models import load_model, load_tokenizer
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task
from hiso.workloads.text.verbalizer import check_labels

from ..chats import make_chat_tokenizer
from ..families import make_model
from ..tiny import make_tokenizer
from .test_families import encoded, plain_logits

SST2 = get_task("sst2")
ARCHITECTURES = ["llama-padded", "llama-tied", "qwen2", "qwen3", "gemma2"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_file_gives_the_scores_of_the_model_that_it_was_made_of(kind, tmp_path):
    gguf_files = pytest.importorskip("tests.gguf_files")
    # What transformers does not read from a file, and takes for granted.
    granted = {"gemma2": {"final_logit_softcapping": 30.0}, "qwen3": {"head_dim": 128}}
    model, tokenizer = make_model(kind, **granted.get(kind, {})), make_tokenizer()
    path = gguf_files.write_gguf(tmp_path / "model.gguf", kind, model, tokenizer)
    lm = load_model(str(path))
    assert lm.context == 128
    mine, theirs = lm.model.state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, msg=name)
    examples, objective = encoded(lm, SST2), Objective(lm, SST2)
    assert objective.verbalizer == check_labels(SST2, tokenizer)
    scores, _ = objective.measure(examples).labelled()
    rows = plain_logits(model.double(), [e.ids for e in examples])
    for row, score in zip(rows, scores, strict=True):
        assert score == pytest.approx(row[-1, objective.verbalizer.first].numpy(), abs=2e-5)


@pytest.fixture
def chat_file(tmp_path):
    """A file with the tokenizer of `make_chat_tokenizer`."""
    gguf_files = pytest.importorskip("tests.gguf_files")
    model = make_model("llama-tied")
    return gguf_files.write_gguf(
        tmp_path / "model.gguf", "llama-tied", model, make_chat_tokenizer()
    )


def test_the_chat_template_in_a_file_is_used(chat_file):
    tokenizer, found = make_chat_tokenizer(), load_tokenizer(str(chat_file))
    assert read_chat(found) == read_chat(tokenizer)
    task = SST2.in_chat(read_chat(found))
    assert check_labels(task, found) == check_labels(task, tokenizer)
    assert encode([], task, found, 64) == []


def test_special_tokens_are_those_of_the_file_whatever_transformers_read(chat_file):
    tokenizer, found = make_chat_tokenizer(), load_tokenizer(str(chat_file))
    assert found.eos_token == tokenizer.eos_token
    found.eos_token = found.bos_token = found.convert_ids_to_tokens(7)
    with parsed_once():
        set_special_tokens(found, chat_file)
    assert (found.bos_token, found.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
