"""Images: splits, networks, losses, and whole runs on scikit-learn's digits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hiso import simulate
from hiso.data.batches import Batch
from hiso.errors import LoadError, SettingsError
from hiso.run.launch import evaluate_run
from hiso.workloads.vision.images import load_data_set
from hiso.workloads.vision.models import fingerprint, make_network
from hiso.workloads.vision.objective import ImageObjective

from ..outcomes import means

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = {"task": "digits", "model": "cnn", "lr": 0.01, "batch_size": 16, "rounds": 4}


@pytest.fixture(scope="module")
def digits():
    return load_data_set("digits")


def test_no_image_is_in_two_splits(digits):
    parts = [digits.train, digits.dev, digits.test]
    assert [len(part) for part in parts] == [1295, 143, 359]
    assert len({id(image) for part in parts for image in part}) == 1797
    assert {image.label for part in parts for image in part} == set(range(digits.classes))
    pixels = torch.stack([image.pixels for image in digits.train])
    assert pixels.shape[1:] == (1, 8, 8)
    assert (float(pixels.min()), float(pixels.max())) == (0, 1)


def test_images_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    known = {
        image.tobytes(): int(label)
        for image, label in zip(*load_digits(return_X_y=True), strict=True)
    }
    for image in digits.test:
        assert known[(image.pixels.double().numpy() * 16).tobytes()] == image.label


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 7)])
def test_a_network_is_a_function_of_its_seed(name, shape, classes):
    first, second, other = (make_network(name, shape, classes, seed) for seed in (0, 0, 1))
    assert fingerprint(first) == fingerprint(second) != fingerprint(other)
    assert first(torch.zeros(5, *shape)).shape == (5, classes)
    for layer in first:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            assert float(layer.weight.detach().abs().max()) <= bound
            assert float(layer.weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.25)


def test_losses_and_gradients_are_those_of_torch(digits):
    module = make_network("cnn", (1, 8, 8), 10, 0).double()
    batches = [Batch(0, tuple(digits.train[:7])), Batch(1, tuple(digits.train[7:20]))]
    expected = []
    for batch in batches:
        pixels = torch.stack([image.pixels for image in batch.examples]).double()
        labels = torch.tensor([image.label for image in batch.examples])
        expected.append(nn.functional.cross_entropy(module(pixels), labels))
    for joint in (True, False):
        losses = means(ImageObjective(module, joint=joint)(batches))
        assert losses == pytest.approx([float(loss.detach()) for loss in expected], rel=1e-6)
    objective = ImageObjective(module)
    mine = torch.autograd.grad(objective.loss(batches[1]), list(module.parameters()))
    theirs = torch.autograd.grad(expected[1], list(module.parameters()))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_metrics_are_over_all_images(digits):
    module = make_network("mlp", (1, 8, 8), 10, 3)
    found = ImageObjective(module).evaluate(digits.train)
    with torch.no_grad():
        logits = module(torch.stack([image.pixels for image in digits.train]))
    labels = torch.tensor([image.label for image in digits.train])
    assert found["accuracy"] == float((logits.argmax(1) == labels).double().mean())
    assert found["loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, labels)))
    with pytest.raises(SettingsError, match="0 examples"):
        ImageObjective(module).evaluate([])


def test_a_run_on_digits_learns_replays_and_knows_its_clients(tmp_path):
    settings = DIGITS | {"rounds": 200, "partition": "dirichlet", "client_examples": 40}
    out = tmp_path / "run"
    summary = simulate(out=out, **settings)
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.05
    assert evaluate_run(out)["digest"] == summary["digest"]
    lines = [line for line in (out / "metrics.jsonl").read_text().splitlines() if "client " in line]
    assert len(lines) == 6
    own = evaluate_run(out, split="client 3")
    assert 0 <= own["accuracy"] <= 1
    with pytest.raises(SettingsError, match="clients are 0 to 5"):
        evaluate_run(out, split="client 6")


def test_a_data_set_from_a_folder(tmp_path):
    """As Hugging Face has it: columns img and label, splits train and test."""
    from datasets import Dataset, DatasetDict, Features, Image, Value

    noise = np.random.Generator(np.random.Philox(0))
    features = Features({"img": Image(), "label": Value("int64")})
    splits = DatasetDict(
        {
            split: Dataset.from_dict(
                {
                    "img": list(noise.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)),
                    "label": [i % 10 for i in range(size)],
                },
                features=features,
            )
            for split, size in (("train", 60), ("test", 20))
        }
    )
    folder = tmp_path / "cifar"
    folder.mkdir()
    for split, rows in splits.items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    found = load_data_set("cifar10", str(folder))
    assert (len(found.train), len(found.dev), len(found.test)) == (54, 6, 20)
    assert found.train[0].pixels.shape == (3, 32, 32)
    first = np.asarray(splits["test"][0]["img"]).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(found.test[0].pixels.numpy(), first, rtol=1e-6)
    with pytest.raises(LoadError, match="no column image"):
        load_data_set("mnist", str(folder))


def test_what_does_not_exist_is_refused(tmp_path):
    with pytest.raises(LoadError, match="set model to cnn or mlp"):
        simulate(out=tmp_path / "run", **DIGITS | {"model": "smollm2"})
    with pytest.raises(LoadError, match="omit data"):
        simulate(out=tmp_path / "run", **DIGITS, data="elsewhere")
    assert not (tmp_path / "run").exists()
