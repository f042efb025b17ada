"""A run that has ended, not to be altered."""

from pathlib import Path

import pytest

from hiso import simulate
from hiso.lab.bench import timing


@pytest.fixture(scope="session")
def run(tmp_path_factory, small_run) -> Path:
    """Six rounds of a random Llama on film reviews."""
    folder = tmp_path_factory.mktemp("export") / "run"
    with timing.one_thread():
        simulate(out=folder, **small_run)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, run) -> Path:
    """Its adapter."""
    from hiso import export_adapter

    folder = tmp_path_factory.mktemp("export") / "adapter"
    export_adapter(run, folder)
    return folder
