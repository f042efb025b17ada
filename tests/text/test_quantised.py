"""Frozen layers in 8 or 4 bits, on bitsandbytes itself."""

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
from hiso.workloads.text.quantised import quantise
from hiso.workloads.text.tasks import TASKS
from hiso.workloads.text.trained import adapter_layers, choose

from ..tiny import save_model

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")


def adapted(folder, kind, dtype=torch.float32):
    lm = load_model(str(save_model(folder / str(kind), "llama")))
    choose(lm, Choice(kind="lora", rank=4, alpha=8, targets=("q_proj", "down_proj")), 0)
    if kind is not None:
        quantise(lm, kind, dtype)
    draw = torch.Generator().manual_seed(0)
    for layer in adapter_layers(lm.model):
        layer.weight.data.copy_(0.3 * torch.randn(layer.weight.shape, generator=draw))
    return lm


def batch() -> Batch[Encoded]:
    draw = np.random.default_rng(0)
    ids = [draw.integers(1, 400, n).astype(np.int32) for n in (9, 20)]
    return Batch(0, tuple(Encoded(one, label=n) for n, one in enumerate(ids)))


@pytest.mark.parametrize(("kind", "largest"), [("int8", 0.02), ("nf4", 0.15)])
def test_layers_are_near_those_of_the_float32_model(tmp_path, kind, largest):
    whole, small = adapted(tmp_path, None), adapted(tmp_path, kind)
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    for one, other in zip(whole.model.model.layers, small.model.model.layers, strict=True):
        exact = one.mlp.down_proj.base_layer(x)
        error = (other.mlp.down_proj.base_layer(x) - exact).norm() / exact.norm()
        assert 0 < error < largest


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_same_batch_has_the_same_scores_again(tmp_path, kind):
    objective = Objective(adapted(tmp_path, kind), TASKS["sst2"])
    first, second = (objective([batch()])[0].scores for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_layers_take_less_memory_and_nothing_trained_is_quantised(tmp_path, kind):
    def size(lm):
        weights = [block.mlp.down_proj.base_layer.weight for block in lm.model.model.layers]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    whole, small = adapted(tmp_path, None), adapted(tmp_path, kind)
    assert size(small) == size(whole) * {"int8": 8, "nf4": 4}[kind] / 32
    assert all(layer.weight.dtype == torch.float32 for layer in adapter_layers(small.model))
    assert small.model.get_input_embeddings().weight.dtype == torch.float32


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_forward_difference_is_the_derivative_of_the_quantised_model(tmp_path, kind):
    """Against the gradient through the quantised layers."""
    lm = adapted(tmp_path, kind)
    objective, layers = Objective(lm, TASKS["sst2"]), adapter_layers(lm.model)
    before = [layer.weight.detach().clone() for layer in layers]
    objective.loss(batch()).backward()
    gradients = [layer.weight.grad for layer in layers]

    def loss(direction: int, step: float) -> tuple[float, float]:
        draw, slope = torch.Generator().manual_seed(direction), 0.0
        for layer, weight, gradient in zip(layers, before, gradients, strict=True):
            z = torch.randn(weight.shape, generator=draw)
            layer.weight.data.copy_(weight + step * z)
            slope += float((gradient.double() * z.double()).sum())
        return objective([batch()])[0].mean, slope

    base, _ = loss(0, 0.0)
    moved, slopes = zip(*(loss(p, 1e-4) for p in range(8)), strict=True)
    assert np.corrcoef((np.array(moved) - base) / 1e-4, slopes)[0, 1] > 0.99


def test_all_directions_in_one_pass_work_on_quantised_layers(tmp_path):
    lm = adapted(tmp_path, "nf4")
    objective, layers = Objective(lm, TASKS["sst2"]), adapter_layers(lm.model)
    before = [layer.weight.clone() for layer in layers]

    def write(point: Point) -> None:
        for layer, weight in zip(layers, before, strict=True):
            layer.weight.data.copy_(weight * (1 + point.direction))

    points = [Point(0, 0, 0, p, 1) for p in range(3)]
    found = objective.at_points(write, points, [batch()])
    for point, outcomes in zip(points, found, strict=True):
        write(point)
        np.testing.assert_allclose(
            outcomes[0].scores, objective([batch()])[0].scores, rtol=1e-4, atol=1e-5
        )


def test_a_model_without_frozen_linear_layers_is_refused(tmp_path):
    lm = load_model(str(save_model(tmp_path / "llama", "llama")))
    with pytest.raises(SettingsError, match="frozen"):
        quantise(lm, "int8", torch.float32)
