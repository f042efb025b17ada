"""Real runs of every kind that a report meets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hiso import simulate
from hiso.lab.bench import timing
from hiso.run.observer import Silent

PASSES = 6


class Stop(Silent):
    """Interrupts a run after its third round."""

    def round(self, row):
        if row.round == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="session")
def runs(tmp_path_factory, small_run) -> dict[str, Path]:
    """Folders by name: two seeds of hiso; zo_sgd; one that goes on; one without a ledger."""
    root = tmp_path_factory.mktemp("runs")
    kinds: dict[str, dict[str, Any]] = {
        "hiso-0": {},
        "hiso-1": {"seed": 1},
        "zo": {"method": "zo_sgd", "partition": "dirichlet", "alpha": 0.5},
        "unfinished": {"lr": 0.02},
    }
    with timing.one_thread():
        for name, settings in kinds.items():
            if name == "unfinished":
                with pytest.raises(KeyboardInterrupt):
                    simulate(out=root / name, observer=Stop(), **small_run | settings)
            else:
                simulate(out=root / name, **small_run | settings)
    return {name: root / name for name in kinds} | {"bare": _without_ledger(root / "zo")}


def _without_ledger(run: Path) -> Path:
    """What a method leaves that logs no scalars: metrics.jsonl and summary.json, with passes."""
    bare = run.with_name("bare")
    bare.mkdir()
    summary = json.loads((run / "summary.json").read_text())
    summary["settings"]["method"] = "fedavg"
    (bare / "summary.json").write_text(json.dumps(summary))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "round":
            line["passes"] = PASSES
    (bare / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return bare


@pytest.fixture
def copy(runs, tmp_path):
    """Makes a copy of a run's folder, to be altered."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(runs[name], tmp_path / name))

    return make
