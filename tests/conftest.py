"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small work on one thread: quick on a busy machine, and the same sums everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
