"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():  # before anything imports triton
    os.environ["TRITON_INTERPRET"] = "1"

from hiso.lab.bench import timing

from .process import Hiso
from .tiny import save_model


@pytest.fixture
def one_thread():
    """Small work on one thread: quick on a busy machine, and the same sums everywhere."""
    with timing.one_thread():
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random Llama of 44,192 weights."""
    return save_model(tmp_path_factory.mktemp("tiny") / "model", "llama")


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
    """Eighty short reviews, with a column `critic` of three values."""
    words = {0: ["bad", "awful", "dull", "long"], 1: ["good", "great", "fine", "lovely"]}
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    lines = ["text,label,critic"]
    for i in range(80):
        kind = words[i % 2]
        text = f"film {i} was {kind[i % 3]} and {kind[i // 7 % 4]}"
        lines.append(f"{text},{i % 2},{'abc'[i % 3]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def small_run(tiny_model, reviews) -> dict[str, Any]:
    """Settings of a run of two seconds, not to be altered."""
    return {
        "model": str(tiny_model),
        "data": str(reviews),
        "method": "hiso",
        "lr": 0.01,
        "clients": 4,
        "sample": 2,
        "rounds": 6,
        "directions": 2,
        "batch_size": 4,
        "max_length": 24,
        "eval_every": 3,
    }


@pytest.fixture
def base(small_run) -> dict[str, Any]:
    """Settings of a run of two seconds."""
    return dict(small_run)


@pytest.fixture
def hiso(tmp_path, monkeypatch) -> Hiso:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return Hiso(tmp_path)
