"""LoRA adapters at several points in one forward pass, against one pass after another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiso.core.noise.point import Point
from hiso.data.batches import Batch
from hiso.errors import SettingsError
from hiso.workloads.text.choice import Choice
from hiso.workloads.text.encode import Encoded
from hiso.workloads.text.models import load_model
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.task import Source, Task
from hiso.workloads.text.tasks import TASKS
from hiso.workloads.text.together import check_together
from hiso.workloads.text.trained import adapter_layers, choose

from ..tiny import save_classifier, save_model

pytest.importorskip("peft")
TARGETS = {"llama": ("q_proj", "down_proj"), "gpt2": ("c_attn",), "opt": ("q_proj", "fc1")}
WORDS = Task(
    name="words",
    template="{sentence} It was",
    labels=(" terrible thing", " great"),
    classes=("negative", "positive"),
    source=Source("nobody/words"),
)
TEXT = Task(name="text", template="{sentence}", labels=(), classes=(), source=Source("nobody/text"))
POINTS = [Point(0, 0), *(Point(0, 0, 0, p, sign) for p in range(3) for sign in (1, -1))]


def adapted(folder, kind: str):
    lm = load_model(str(save_model(folder / kind, kind)))
    choose(lm, Choice(kind="lora", rank=4, alpha=8, targets=TARGETS[kind]), 0)
    return lm


def writer(lm, scale: float = 0.3):
    """Writes other random adapters at every point."""

    def write(point: Point) -> None:
        key = torch.Generator().manual_seed(10 * point.direction + point.sign + 1)
        for layer in adapter_layers(lm.model):
            layer.weight.data.copy_(scale * torch.randn(layer.weight.shape, generator=key))

    return write


def batches(lengths=((3, 9, 9), (5, 30)), size=400) -> list[Batch[Encoded]]:
    draw = np.random.default_rng(0)
    return [
        Batch(
            client,
            tuple(
                Encoded(draw.integers(1, size, n).astype(np.int32), label=n % 2, start=1)
                for n in of_client
            ),
        )
        for client, of_client in enumerate(lengths)
    ]


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("task", [TASKS["sst2"], WORDS, TEXT], ids=lambda task: task.name)
def test_one_pass_gives_what_separate_passes_give(tmp_path, kind, task):
    lm = adapted(tmp_path, kind)
    objective, write, drawn = Objective(lm, task), writer(lm), batches()
    expected = []
    for point in POINTS:
        write(point)
        expected.append(objective(drawn))
    before, last = objective.passes, [w.weight.clone() for w in adapter_layers(lm.model)]
    found = objective.at_points(write, POINTS, drawn)
    assert objective.passes == before + 1
    spread = np.ptp([outcome.losses for outcomes in expected for outcome in outcomes[:1]])
    assert spread > 0.01  # the points differ
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)
            np.testing.assert_array_equal(one.weights, other.weights)
            if task.labels:
                np.testing.assert_allclose(one.scores, other.scores, rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(one.labels, other.labels)
    for layer, weight in zip(adapter_layers(lm.model), last, strict=True):
        assert torch.equal(layer.weight, weight)
    again = objective(drawn)  # an ordinary pass again, at the last point
    for one, other in zip(again, expected[-1], strict=True):
        np.testing.assert_array_equal(one.losses, other.losses)


def test_an_error_in_the_pass_leaves_an_ordinary_model(tmp_path):
    lm = adapted(tmp_path, "llama")
    objective, write = Objective(lm, TASKS["sst2"]), writer(lm)
    lm.model.config.max_position_embeddings = 8
    with pytest.raises(SettingsError):
        objective.at_points(write, POINTS, batches())
    assert not any("forward" in vars(layer) for layer in adapter_layers(lm.model))
    short = batches(((3, 5),))
    first = objective(short)[0].losses
    np.testing.assert_array_equal(objective(short)[0].losses, first)


def test_models_that_train_something_else_are_refused(tmp_path):
    whole = load_model(str(save_model(tmp_path / "llama", "llama")))
    head = load_model(str(save_classifier(tmp_path / "bert", "bert")))
    choose(head, Choice(kind="lora", rank=2, alpha=4), 0)
    for lm in (whole, head):
        with pytest.raises(SettingsError, match="joint_directions"):
            check_together(lm)


def test_a_model_with_batches_in_another_order_is_refused(tmp_path):
    lm = adapted(tmp_path, "llama")
    before = [layer.weight.clone() for layer in adapter_layers(lm.model)]
    check_together(lm)
    for layer, weight in zip(adapter_layers(lm.model), before, strict=True):
        assert torch.equal(layer.weight, weight)
    layer = adapter_layers(lm.model)[0]
    layer.register_forward_pre_hook(lambda _, given: (given[0].transpose(0, 1),))
    layer.register_forward_hook(lambda _, __, found: found.transpose(0, 1))
    with pytest.raises(SettingsError, match="joint_directions"):
        check_together(lm)
