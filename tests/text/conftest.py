"""Tiny random models, the packaged model, and no network."""

import pytest

from hiso.workloads.text.models import LanguageModel, load_model

from ..tiny import save_model


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> LanguageModel:
    return load_model(str(save_model(tmp_path_factory.mktemp("llama"), "llama")))


@pytest.fixture(scope="session")
def opt(tmp_path_factory) -> LanguageModel:
    """Its tokenizer puts a token before and one behind every text."""
    return load_model(str(save_model(tmp_path_factory.mktemp("opt"), "opt", begin=True)))


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    return load_model("smollm2")


@pytest.fixture
def offline(monkeypatch):
    """No waiting for a network that is not there."""
    import datasets
    import huggingface_hub
    import transformers.utils.hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(transformers.utils.hub, "is_offline_mode", lambda: True)


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
