"""Architectures of many families against their own plain forward passes, in float64."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from hiso import evaluate_run, simulate
from hiso.core.method.registry import ZoSgd
from hiso.core.noise.point import Point
from hiso.core.replica.replica import Replica
from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.generation import write_answers
from hiso.workloads.text.models import copy_model, load_model, output_head
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task

from ..families import CAPPED, FAMILIES, TIED, make_model, save_family
from ..identities import identity_of
from ..tiny import make_tokenizer

SST2, TEXT, SQUAD = get_task("sst2"), get_task("text"), get_task("squad")
ALIKE = dataclasses.replace(SST2, labels=(" very bad", " very good and great"))
SENTENCES = [
    "The film was very good.",
    "What a terrible plot, it was very bad and very long, the acting was terrible.",
    "great",
    "The quick brown fox jumps over the lazy dog, and the film was long.",
]


@pytest.fixture(scope="module", params=FAMILIES)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return save_family(tmp_path_factory.mktemp(kind), kind, begin=kind in ("gemma2", "opt"))


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(str(folder))


@pytest.fixture(scope="module")
def exact(lm):
    """The same model in float64."""
    return copy.deepcopy(lm.model).double()


def encoded(lm, task):
    if task.is_text:
        examples = [Example(text, None) for text in SENTENCES]
    elif task.answers:
        rows = [{"context": text, "question": "How was it?"} for text in SENTENCES]
        examples = [
            Example(task.prompt(row), None, answers=("very good",), context=task.context(row))
            for row in rows
        ]
    else:
        rows = [dict.fromkeys(task.columns, text) for text in SENTENCES]
        examples = [Example(task.prompt(row), i % 2) for i, row in enumerate(rows)]
    return encode(examples, task, lm.tokenizer, 96)


@torch.inference_mode()
def plain_logits(model, sequences) -> list[torch.Tensor]:
    """Of one sequence after the other, as transformers is used; float64 [T, V] each."""
    ids = [torch.as_tensor(np.asarray(sequence, np.int64))[None] for sequence in sequences]
    return [
        model(input_ids=one, attention_mask=torch.ones_like(one)).logits[0].double() for one in ids
    ]


@torch.inference_mode()
def padded_logits(model, sequences, pad: int) -> list[torch.Tensor]:
    """Of one batch, padded on the right under an attention mask."""
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.full((len(sequences), max(lengths)), pad)
    for row, sequence, length in zip(ids, sequences, lengths, strict=True):
        row[:length] = torch.as_tensor(np.asarray(sequence, np.int64))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    logits = model(input_ids=ids, attention_mask=mask).logits.double()
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def plain_losses(model, examples) -> list[float]:
    """The sum over the tokens that each example learns."""
    rows = plain_logits(model, [e.ids for e in examples])
    losses = []
    for example, row in zip(examples, rows, strict=True):
        start = max(1, example.start)
        right = torch.as_tensor(example.ids[start:].astype(np.int64))
        table = row[start - 1 : -1].log_softmax(-1)
        losses.append(-float(table.gather(1, right[:, None]).sum()))
    return losses


def test_label_scores_are_those_of_plain_logits(lm, exact, kind):
    examples = encoded(lm, SST2)
    objective = Objective(lm, SST2)
    assert objective.verbalizer is not None
    outcome = objective.measure(examples)
    scores, _ = outcome.labelled()
    rows = plain_logits(exact, [e.ids for e in examples])
    expected = torch.stack([row[-1, objective.verbalizer.first] for row in rows]).numpy()
    assert np.abs(scores - expected).max() < 2e-5
    assert expected.std() > 1e-2
    labels = [e.label for e in examples]
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(expected), torch.tensor(labels), reduction="none"
    )
    assert outcome.losses == pytest.approx(losses.numpy(), abs=2e-5)
    if kind in CAPPED:
        assert np.abs(expected).max() < 3
    if kind != "gemma2":  # transformers gives NaN where a window holds padding alone
        rows = padded_logits(exact, [e.ids for e in examples], lm.padding)
        padded = torch.stack([row[-1, objective.verbalizer.first] for row in rows]).numpy()
        assert np.abs(scores - padded).max() < 2e-5


def test_labels_of_several_tokens_are_scored_as_plain_logits_have_them(lm, exact):
    examples, objective = encoded(lm, ALIKE), Objective(lm, ALIKE)
    assert objective.verbalizer is not None
    assert objective.verbalizer.mode == "sequence"
    scores, _ = objective.measure(examples).labelled()
    for column, words in enumerate(objective.verbalizer.tokens):
        rows = plain_logits(exact, [[*e.ids, *words] for e in examples])
        for example, row, score in zip(examples, rows, scores[:, column], strict=True):
            table = row[len(example.ids) - 1 : -1].log_softmax(-1)
            mean = np.mean([float(table[i, word]) for i, word in enumerate(words)])
            assert score == pytest.approx(mean, abs=2e-5)


@pytest.mark.parametrize("task", [TEXT, SQUAD], ids=["text", "squad"])
def test_losses_of_texts_and_answers_are_those_of_plain_logits(lm, exact, task):
    examples = encoded(lm, task)
    losses = Objective(lm, task).measure(examples).losses
    assert losses == pytest.approx(plain_losses(exact, examples), rel=2e-5, abs=2e-5)


def test_answers_are_written_as_one_token_after_the_other_is_read(lm, exact):
    prompts = [e.ids[: e.start] for e in encoded(lm, SQUAD)]
    expected = []
    for prompt in prompts:
        ids = prompt.tolist()
        for _ in range(6):
            ids.append(int(plain_logits(exact, [ids])[0][-1].argmax()))
        expected.append(ids[len(prompt) :])
    texts = lm.tokenizer.batch_decode(expected, skip_special_tokens=True)
    written = write_answers(lm, prompts, 6, frozenset({399}))
    assert written == [text.strip() for text in texts]


def test_tied_weights_are_one_and_move_along_one_direction(folder, kind):
    lm = load_model(str(folder))
    head, embedding = output_head(lm.model).weight, lm.model.get_input_embeddings().weight
    assert (head is embedding) == (kind in TIED)
    before = embedding.detach().clone()
    replica = Replica(lm.model, identity_of(ZoSgd()), backend="reference")
    assert replica.numel == sum(p.numel() for p in lm.model.parameters())
    replica.write(Point(0, 0, 0, 0, 1), mu=0.01)
    moved = lm.model.get_input_embeddings().weight.detach() - before
    assert 0.005 < float(moved.std()) < 0.02
    examples, objective = encoded(lm, SST2), Objective(lm, SST2, rows=replica.rows)
    assert objective.verbalizer is not None
    there = copy.deepcopy(lm.model).double()
    rows = plain_logits(there, [e.ids for e in examples])
    expected = torch.stack([row[-1, objective.verbalizer.first] for row in rows]).numpy()
    assert np.abs(objective.measure(examples).labelled()[0] - expected).max() < 2e-5


@pytest.mark.parametrize("memory", ["full", "lean"])
def test_half_precision_has_a_float32_head(folder, kind, memory):
    if (kind, memory) == ("falcon-h1", "lean"):
        pytest.skip("refused, see below")
    lm = load_model(str(folder))
    head = output_head(lm.model)
    weight, bias = head.weight.detach().double(), head.bias
    bias = None if bias is None else bias.detach().double()
    method = identity_of(ZoSgd(), dtype=torch.bfloat16)
    replica = Replica(lm.model, method, memory=memory, backend="reference")
    replica.write()
    examples, objective = encoded(lm, SST2), Objective(lm, SST2, rows=replica.rows)
    seen = []
    hook = lm.model.base_model.register_forward_hook(
        lambda _, __, output: seen.append(output.last_hidden_state)
    )
    objective.measure(examples[:1])
    hook.remove()
    scores, _ = objective.measure(examples[:1]).labelled()
    assert seen[0].dtype == torch.bfloat16
    first = objective.verbalizer.first
    logits = weight[first] @ seen[0][0, len(examples[0].ids) - 1].double()
    logits = logits if bias is None else logits + bias[first]
    match kind:
        case "cohere":
            logits = logits * 0.3
        case "granite":
            logits = logits / 4
        case "falcon-h1":
            logits = logits * 0.37
        case _ if kind in CAPPED:
            logits = 3 * (logits / 3).tanh()
    assert scores[0] == pytest.approx(logits.numpy(), abs=1e-5)


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_replayed_and_needs_no_compute_copy(folder, kind, small_run, tmp_path):
    """Replicas of their own, with full and with lean memory, have the digest of the run."""
    asked = {**small_run, "model": str(folder), "rounds": 2, "lr": 1e-3, "eval_every": 0}
    done = simulate(out=tmp_path / "full", **asked)
    assert evaluate_run(tmp_path / "full")["digest"] == done["digest"]
    assert done["loss_after"] != done["loss_before"]
    if kind == "falcon-h1":  # a mixer reads the weights of its convolution without calling it
        with pytest.raises(SettingsError, match="memory = lean"):
            simulate(out=tmp_path / "lean", **asked, memory="lean")
    else:
        lean = simulate(out=tmp_path / "lean", **asked, memory="lean")
        assert lean["digest"] == done["digest"]


def test_a_model_without_a_head_is_refused():
    with pytest.raises(LoadError, match="no output head"):
        copy_model(make_model("llama-tied").model, tokenizer())


class Scaled(torch.nn.Linear):
    """An output head whose outputs a model would scale, where hiso cannot see it."""

    def forward(self, x):
        return super().forward(x) * 1.001


def tokenizer():
    found = make_tokenizer()
    found.pad_token = found.eos_token
    return found


def test_a_scale_that_no_configuration_names_is_refused():
    model = make_model("llama-padded")
    model.lm_head.__class__ = Scaled
    with pytest.raises(LoadError, match="LlamaForCausalLM"):
        copy_model(model, tokenizer())


def test_a_cap_counts_even_where_it_does_little():
    """Logits far below the cap: hiso has to know the cap, and is told when it does not."""
    model = make_model("gemma2", final_logit_softcapping=300.0)
    assert copy_model(model, tokenizer())
    model.model.config = model.config
    model.config = copy.deepcopy(model.config)
    model.config.final_logit_softcapping = None
    uncapped = model.forward

    def forward(**inputs):
        out = uncapped(**inputs)
        out.logits = 300 * (out.logits / 300).tanh()
        return out

    model.forward = forward
    with pytest.raises(LoadError, match="Gemma2ForCausalLM"):
        copy_model(model, tokenizer())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("HyperCLOVAX", {"logits_scaling": 4.0}),
        ("ModernBertDecoder", {}),
        ("XLM", {"pad_index": 1}),
        ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "logit_scale": 0.5}),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_would_give_other_scores_is_refused_by_name(name, values):
    """A scale of another meaning, a layer before the head, a model that looks ahead."""
    import transformers as t

    size = SIZES.get(name, {})
    config = getattr(t, f"{name}Config")(vocab_size=400, **size, **values)
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    with pytest.raises(LoadError, match=f"(?i){name}"):
        copy_model(model, tokenizer())


SIZES = {
    "HyperCLOVAX": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "ModernBertDecoder": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 1}
    | {"cls_token_id": 0, "sep_token_id": 1},
    "XLM": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
}
