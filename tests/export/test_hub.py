"""Uploading an adapter, as far as that goes without a hub."""

from __future__ import annotations

import socket

import pytest

from hiso import push_to_hub
from hiso.errors import LoadError


def test_what_is_no_adapter_is_not_uploaded(tmp_path):
    with pytest.raises(LoadError, match="neither a run nor an adapter"):
        push_to_hub(tmp_path, "somebody/something")


def test_a_hub_that_does_not_answer(adapter, monkeypatch):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            "huggingface_hub.hf_api.constants.ENDPOINT",
            f"http://127.0.0.1:{taken.getsockname()[1]}",
        )
        with pytest.raises(LoadError, match="cannot upload"):
            push_to_hub(adapter, "somebody/something")
