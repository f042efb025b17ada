"""One deployment for all tests here: SuperLink and three workers of a tiny model.

What passes between worker 0 and the SuperLink is counted.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .federation import Deployment, write_toml


@pytest.fixture(scope="session", autouse=True)
def end_in_order() -> Iterator[None]:
    """SIGTERM ends the tests as an error would, so that no process is left."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated"))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def settings(small_run) -> dict[str, Any]:
    return small_run | {"clients": 3, "rounds": 4, "eval_every": 0, "joint": False}


def simulated_site(folder: Path) -> None:
    """A worker's folder with batches as a simulation draws them, so that models can be compared."""
    folder.mkdir(mode=0o700)
    (folder / "site.toml").write_text('batches = "seed"\n')


@pytest.fixture(scope="session")
def deployment(tmp_path_factory, settings) -> Iterator[Deployment]:
    folder: Path = tmp_path_factory.mktemp("f")
    site = Deployment(folder)
    try:
        write_toml(folder / "settings.toml", settings)
        for index in range(3):  # they wait for the SuperLink
            simulated_site(folder / f"w{index}")
            site.worker(index, "--share", counted=index == 0)
        site.superlink()
        yield site
    finally:
        site.close()
