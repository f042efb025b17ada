"""Backward passes of single examples of a tiny language model, against autograd on all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiso.core.method.registry import HiSo
from hiso.core.replica.replica import Replica
from hiso.data.batches import Batch
from hiso.errors import SettingsError
from hiso.lab.theory.language.examples import Margins, Sample, Slopes, measure_slopes
from hiso.lab.theory.language.layers import LayerHessian, look_at_layer
from hiso.lab.theory.language.outlooks import oracle_table, spectrum_of
from hiso.lab.theory.presets import LanguagePreset
from hiso.run.settings import parse_settings
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.models import load_model
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task

from ...identities import identity_of

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def scene(tiny_model, reviews):
    torch.set_num_threads(1)
    lm, task = load_model(str(tiny_model)), get_task("rotten_tomatoes")
    train = load_examples(task, str(reviews)).train[:8]
    examples = encode(train, task, lm.tokenizer, 24)
    replica = Replica(lm.model, identity_of(HiSo()))
    return lm, task, examples, replica


@pytest.fixture(scope="module")
def whole(scene):
    """Slopes with every weight drawn."""
    lm, task, examples, replica = scene
    margins = Margins(lm, task)
    sample = Sample.draw(replica.layout, HEAD, margins.words.tolist(), 10**9)
    return sample, measure_slopes(margins, sample, examples)


def test_a_sample_stands_for_all_weights(scene):
    _, _, _, replica = scene
    for size in (1000, 10**9):
        sample = Sample.draw(replica.layout, HEAD, [3, 7], size)
        assert sample.stands_for.sum() == pytest.approx(replica.numel)
        assert sample.label.sum() == 64
        assert sample.stands_for[sample.label].tolist() == [1] * 64
        blocks = sample.blocks()
        for entry in replica.layout:
            here = blocks[entry.name]
            assert sample.stands_for[here].sum() == pytest.approx(entry.numel)
            assert len(set(sample.places[entry.name].tolist())) == here.stop - here.start
            assert (sample.embedding[here] == (entry.name == HEAD)).all()
        buffer = torch.arange(len(replica.weights)).float()
        found = sample.of_flat(replica.layout, buffer)
        entry = next(e for e in replica.layout if e.name == HEAD)
        assert set(found[sample.label]) == {
            float(entry.offset + row * 32 + i) for row in (3, 7) for i in range(32)
        }
    assert (sample.stands_for == 1).all()


def test_slopes_give_the_losses_own_gradient(scene, whole):
    lm, task, examples, _ = scene
    sample, slopes = whole
    loss = Objective(lm, task).loss(Batch(0, tuple(examples)))
    named = {n: p for n, p in lm.model.named_parameters() if n in sample.places}
    exact = torch.autograd.grad(loss, list(named.values()))
    expected = sample.of(dict(zip(named, exact, strict=True)))
    factors = slopes.factors(sample.stands_for)
    np.testing.assert_allclose(factors.gradients.mean(0), expected, atol=2e-6)
    assert float(loss.detach()) == pytest.approx(
        np.logaddexp(0, (1 - 2 * slopes.label) * slopes.margin).mean(), rel=1e-5
    )
    np.testing.assert_allclose(slopes.norms, (slopes.drawn.astype(float) ** 2).sum(1), rtol=1e-4)
    of_labels = (slopes.drawn[:, sample.label].astype(float) ** 2).sum(1)
    np.testing.assert_allclose(slopes.label_norms, of_labels, rtol=1e-4)


def test_sketches_keep_dot_products(whole):
    _, slopes = whole
    exact = slopes.drawn.astype(float) @ slopes.drawn.T.astype(float)
    sizes = np.sqrt(np.outer(slopes.norms, slopes.norms))
    assert (np.abs(slopes.dots() - exact) < 5 * sizes / np.sqrt(2**15)).all()


def test_the_spectrum_is_that_of_the_matrix(whole):
    sample, slopes = whole
    found = spectrum_of(slopes, sample)
    rows = slopes.drawn * np.sqrt(slopes.bend)[:, None]
    eigenvalues = np.linalg.eigvalsh(rows @ rows.T / len(rows))[::-1]
    assert found["top_gauss_newton"] == pytest.approx(eigenvalues[0], rel=0.02)
    assert found["trace_gauss_newton"] == pytest.approx(eigenvalues.sum(), rel=1e-4)
    gradients = slopes.drawn * slopes.residual[:, None]
    mean = gradients.mean(0)
    unbiased = mean @ mean - gradients.var(0, ddof=1).sum() / len(rows)
    assert found["gradient_norm2"] == pytest.approx(unbiased, abs=0.05 * abs(mean @ mean))
    assert found["kappa_error"] > 0


def test_a_few_weights_tell_what_all_tell(scene, whole):
    lm, task, examples, replica = scene
    _, slopes = whole
    margins = Margins(lm, task)
    sample = Sample.draw(replica.layout, HEAD, margins.words.tolist(), 20_000)
    few = measure_slopes(margins, sample, examples)
    np.testing.assert_allclose(few.norms, slopes.norms, rtol=1e-5)
    trace = float(sample.stands_for @ few.factors(sample.stands_for).diagonal)
    assert trace == pytest.approx((slopes.bend * slopes.norms).mean(), rel=0.1)


def test_an_oracle_of_power_zero_changes_nothing(whole):
    sample, slopes = whole
    preset = LanguagePreset(
        experiment="language", run={}, positions=[1], powers=[0.0, 1.0], floors=[0.1]
    )
    table = oracle_table(preset, parse_settings({}), slopes, sample)
    known = {(row["weights"], row["h"]): row for row in table}
    assert set(known) == {
        (weights, h)
        for weights in ("all", "without embedding")
        for h in ("diagonal^0", "diagonal^1", "block")
    }
    for weights in ("all", "without embedding"):
        ratio = known[weights, "diagonal^0"]["ratio"]
        assert ratio is None or ratio == pytest.approx(1)


def test_a_layers_hessian_is_the_whole_hessians_block(scene):
    lm, task, examples, replica = scene
    margins = Margins(lm, task)
    name = "model.norm.weight"
    weight = dict(lm.model.named_parameters())[name]
    found = LayerHessian(margins, weight, examples[:4])
    label = torch.tensor([e.label for e in examples[:4]])

    def loss(value):
        total = torch.zeros(())
        for example, right in zip(examples[:4], label, strict=True):
            ids = torch.from_numpy(example.ids.astype(np.int64))[None]
            logits = functional_call(lm.model, {name: value}, (ids,)).logits[0, -1]
            total = total + nn.functional.cross_entropy(logits[margins.words][None], right[None])
        return total / 4

    with sdpa_kernel(SDPBackend.MATH):
        exact = torch.autograd.functional.hessian(loss, weight.detach().clone())
    rows = torch.stack([found.product(row) for row in torch.eye(32)])
    torch.testing.assert_close(rows, exact, rtol=1e-3, atol=1e-4)
    slope = torch.autograd.functional.jacobian(loss, weight.detach().clone())
    torch.testing.assert_close(found.gradient, slope, rtol=1e-4, atol=1e-5)
    told = look_at_layer(margins, replica, name, examples[:4], probes=20, eigenvalues=2)
    off = abs(told["trace_hessian"] - float(exact.trace()))
    assert off < 4 * told["trace_error"] + 1e-3
    top = np.linalg.eigvalsh(exact.numpy())[::-1][:2]
    np.testing.assert_allclose(told["top_hessian"], top, rtol=0.02)


def test_what_is_no_two_way_choice_of_tokens_is_refused(scene):
    lm, task, _, replica = scene
    with pytest.raises(SettingsError, match="two label words of one token"):
        Margins(lm, get_task("cb"))
    with pytest.raises(SettingsError, match="no parameter model\\.nothing"):
        look_at_layer(Margins(lm, task), replica, "model.nothing", [], probes=2, eigenvalues=1)


def test_parts_are_joined_in_order(whole):
    _, slopes = whole
    parts = [
        replace(slopes, **{k: v[here] for k, v in vars(slopes).items()})
        for here in (slice(0, 3), slice(3, None))
    ]
    joined = Slopes.join(parts)
    for name, value in vars(slopes).items():
        np.testing.assert_array_equal(getattr(joined, name), value)
