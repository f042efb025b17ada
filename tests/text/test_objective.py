import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from hiso.core.method.registry import ZoSgd
from hiso.core.replica.replica import Replica
from hiso.data.batches import Batch
from hiso.errors import SettingsError
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.models import load_model
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task
from hiso.workloads.text.verbalizer import check_labels

from ..identities import identity_of
from ..outcomes import means
from ..tiny import save_model

SENTENCES = [
    "The film was very good.",
    "What a terrible plot, it was very bad and very long, the acting was terrible.",
    "great",
    "The quick brown fox jumps over the lazy dog, and the film was long.",
    "bad acting",
]
SST2 = get_task("sst2")
ALIKE = dataclasses.replace(SST2, labels=(" very bad", " very good and great"))


def examples(task):
    if task.is_text:
        return [Example(text, None) for text in SENTENCES]
    count = len(task.labels)
    row = dict.fromkeys(task.columns, "It was long.")
    return [
        Example(task.prompt(row | {task.columns[0]: text}), i % count)
        for i, text in enumerate(SENTENCES)
    ]


def batches(lm, task, max_length=64):
    encoded = encode(examples(task), task, lm.tokenizer, max_length)
    return [Batch(0, tuple(encoded[:2])), Batch(4, tuple(encoded[2:]))]


@torch.inference_mode()
def log_probabilities(lm, ids):
    """Of every next token at every position, from the model's own full logits, in float64."""
    logits = lm.model(input_ids=torch.as_tensor(np.asarray(ids, np.int64))[None]).logits[0]
    return logits.double().log_softmax(-1)


def reference(lm, task, batch):
    """The mean loss of one batch, example by example, nothing padded."""
    losses, weights = [], []
    for example in batch.examples:
        ids = example.ids.tolist()
        if task.is_text:
            table = log_probabilities(lm, ids)
            losses.append(-sum(float(table[t, ids[t + 1]]) for t in range(len(ids) - 1)))
            weights.append(len(ids) - 1)
            continue
        verbalizer = check_labels(task, lm.tokenizer)
        scores = []
        for label in verbalizer.tokens:
            used = label if verbalizer.mode == "sequence" else label[:1]
            table = log_probabilities(lm, ids + list(used))
            at = range(len(ids) - 1, len(ids) - 1 + len(used))
            scores.append(
                sum(float(table[t, token]) for t, token in zip(at, used, strict=True)) / len(used)
            )
        total = math.log(sum(math.exp(score) for score in scores))
        losses.append(total - scores[example.label])
        weights.append(1)
    return sum(losses) / sum(weights)


TASKS = [SST2, get_task("cb"), get_task("qqp"), ALIKE, get_task("text")]
IDS = ["sst2", "cb", "qqp", "sequence", "text"]


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("task", TASKS, ids=IDS)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_loss_is_that_of_the_models_full_logits(name, task, joint, request):
    lm = request.getfixturevalue(name)
    drawn = batches(lm, task)
    losses = means(Objective(lm, task, joint=joint)(drawn))
    expected = [reference(lm, task, batch) for batch in drawn]
    assert losses == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert all(isinstance(loss, float) for loss in losses)


@pytest.mark.parametrize("kind", ["gemma2", "cohere", "granite"])
@pytest.mark.parametrize("task", [SST2, get_task("text")], ids=["sst2", "text"])
def test_scaled_and_capped_logits_are_kept(kind, task, tmp_path):
    lm = load_model(str(save_model(tmp_path, kind)))
    drawn = batches(lm, task)
    expected = [reference(lm, task, batch) for batch in drawn]
    assert means(Objective(lm, task)(drawn)) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_both_modes_agree_where_labels_are_single_tokens(llama):
    drawn, objective = batches(llama, SST2), Objective(llama, SST2)
    assert objective.verbalizer is not None
    by_token = means(objective(drawn))
    objective.verbalizer = dataclasses.replace(objective.verbalizer, mode="sequence")
    assert means(objective(drawn)) == pytest.approx(by_token, abs=1e-5)


@pytest.mark.parametrize("task", TASKS, ids=IDS)
def test_padding_changes_nothing(llama, task):
    drawn = batches(llama, task)
    losses = means(Objective(llama, task)(drawn))
    other = dataclasses.replace(llama, tokenizer=copy.deepcopy(llama.tokenizer))
    other.tokenizer.pad_token = "<s>"
    assert other.tokenizer.pad_token_id != llama.tokenizer.pad_token_id
    assert means(Objective(other, task)(drawn)) == losses
    alone = [means(Objective(llama, task)([Batch(0, (e,))]))[0] for e in drawn[0].examples]
    if not task.is_text:
        assert sum(alone) / 2 == pytest.approx(losses[0], abs=1e-5)


def test_free_text_weighs_tokens_not_examples(llama):
    task = get_task("text")
    drawn = batches(llama, task)[0].examples
    alone = [means(Objective(llama, task)([Batch(0, (e,))]))[0] for e in drawn]
    counts = [len(e.ids) - 1 for e in drawn]
    mean = sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)
    assert means(Objective(llama, task)([Batch(0, drawn)]))[0] == pytest.approx(mean, abs=1e-5)


def test_the_vocabulary_and_the_positions_are_taken_in_parts(llama, monkeypatch):
    task = get_task("text")
    drawn = batches(llama, task)
    whole = means(Objective(llama, task)(drawn))
    monkeypatch.setattr("hiso.workloads.text.objective._VOCABULARY", 7)
    monkeypatch.setattr("hiso.workloads.text.objective._POSITIONS", 3)
    asked = []

    def rows(weight, ids):
        asked.append(len(ids))
        return weight[ids].float()

    assert means(Objective(llama, task, rows=rows)(drawn)) == pytest.approx(whole, abs=1e-5)
    assert max(asked) == 7


def test_rows_of_the_head_can_come_from_elsewhere(llama):
    drawn = batches(llama, SST2)
    seen = []

    def rows(weight, ids):
        seen.append((tuple(weight.shape), ids.tolist()))
        return torch.zeros(len(ids), weight.shape[1])

    losses = means(Objective(llama, SST2, rows=rows)(drawn))
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-6)
    assert seen == [((400, 32), check_labels(SST2, llama.tokenizer).first)]


def test_a_half_precision_model_gives_float32_losses(llama):
    half = dataclasses.replace(llama, model=copy.deepcopy(llama.model).to(torch.bfloat16))
    master = llama.model.get_output_embeddings().weight.detach()
    drawn = batches(llama, SST2)
    losses = means(Objective(half, SST2, rows=lambda _, ids: master[ids])(drawn))
    assert losses == pytest.approx(means(Objective(llama, SST2)(drawn)), rel=0.2, abs=0.2)
    assert all(torch.tensor(loss).bfloat16().item() != loss for loss in losses)


def test_joint_batches_are_one_pass_and_are_counted(llama):
    drawn = batches(llama, SST2)
    joint, separate = Objective(llama, SST2), Objective(llama, SST2, joint=False)
    assert means(joint(drawn)) == pytest.approx(means(separate(drawn)), abs=1e-5)
    assert (joint.passes, separate.passes) == (1, 2)
    assert joint.seconds > 0
    assert joint([]) == []
    assert joint.passes == 1


def test_separate_passes_are_bit_equal_whatever_is_beside_them(llama):
    drawn = batches(llama, SST2)
    objective = Objective(llama, SST2, joint=False)
    assert means(objective(drawn)) == means(objective(drawn[:1])) + means(objective(drawn[1:]))


def test_no_gradient_is_kept_and_new_weights_are_seen(tmp_path):
    lm = load_model(str(save_model(tmp_path, "llama")))
    drawn, objective = batches(lm, SST2), Objective(lm, SST2)
    before = means(objective(drawn))
    assert means(objective(drawn)) == before
    for parameter in lm.model.parameters():
        assert parameter.grad is None
        parameter.data = parameter.data * 1.5
    assert means(objective(drawn)) != before


def test_examples_longer_than_the_context_are_refused(llama):
    long = [Example("The film was very good. " * 60 + "It was", 1)]
    encoded = tuple(encode(long, SST2, llama.tokenizer, 129))
    with pytest.raises(SettingsError, match="Set max_length to 128 or less"):
        means(Objective(llama, SST2)([Batch(0, encoded)]))


@pytest.mark.model
@pytest.mark.parametrize("task", [SST2, get_task("text")], ids=["sst2", "text"])
def test_the_packaged_models_loss_is_that_of_its_full_logits(smollm2, task):
    drawn = batches(smollm2, task)
    expected = [reference(smollm2, task, batch) for batch in drawn]
    assert means(Objective(smollm2, task)(drawn)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("task", [SST2, ALIKE, get_task("text")], ids=["token", "sequence", "text"])
def test_gradients_are_those_of_the_same_loss(llama, task):
    """Along a direction, against central differences in float64."""
    drawn = batches(llama, task)
    lm = dataclasses.replace(llama, model=copy.deepcopy(llama.model).double())
    objective = Objective(lm, task)
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    loss = objective.loss(drawn[1])
    assert float(loss.detach()) == pytest.approx(means(objective([drawn[1]]))[0], rel=1e-6)
    gradient = torch.autograd.grad(loss, parameters)
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * z).sum()) for g, z in zip(gradient, along, strict=True))

    def at(distance):
        with torch.no_grad():
            for p, z in zip(parameters, along, strict=True):
                p.add_(z, alpha=distance)
            value = means(objective([drawn[1]]))[0]
            for p, z in zip(parameters, along, strict=True):
                p.sub_(z, alpha=distance)
        return value

    step = 1e-3  # the loss itself is float32, so no smaller
    assert (at(step) - at(-step)) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=1e-3)


def test_a_bias_of_the_head_is_read_like_its_rows(llama):
    """Lean memory has no bias to read between calls, and half precision no exact one."""
    losses = {}
    for memory in ("full", "lean"):
        lm = dataclasses.replace(llama, model=copy.deepcopy(llama.model))
        lm.model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 400))
        drawn = batches(lm, SST2)
        replica = Replica(lm.model, identity_of(ZoSgd()), memory=memory, backend="reference")
        losses[memory] = means(Objective(lm, SST2, rows=replica.rows)(drawn))
    assert losses["full"] == losses["lean"]
    assert losses["full"] != means(Objective(llama, SST2)(batches(llama, SST2)))
