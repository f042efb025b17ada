"""Runs an experiment from its preset to its results: JSON, CSV, pictures."""

from __future__ import annotations

import csv
import io
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hiso.errors import LoadError
from hiso.lab.theory.cells import open_cells
from hiso.lab.theory.presets import (
    CurvaturePreset,
    DimensionPreset,
    OraclePreset,
    Preset,
    load_preset,
)
from hiso.run.doctor import describe
from hiso.run.observer import Observer

_NEEDED = {"scipy": "scipy", "matplotlib": "matplotlib", "sklearn": "scikit-learn"}


def run_experiment(path: Path, folder: Path, observer: Observer) -> dict[str, Any]:
    """Runs the parts of the experiment that `folder` lacks, and writes the results there.

    Returns:
        The content of `results.json`: `rows` (also in `results.csv`), the other results of the
        experiment, the preset, the command, and `describe()` of versions and machine.

    Raises:
        SettingsError: The preset is wrong. Nothing was written.
        RunConflict: The folder holds another experiment.
        LoadError: A package, model or data set is missing.
    """
    preset = load_preset(path)
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise LoadError(f"hiso theory needs {', '.join(missing)}: pip install 'hiso[theory]'")
    with open_cells(folder, preset.model_dump(mode="json")) as cells:
        found = _run(preset, folder, cells, observer)
        results = {
            "experiment": preset.experiment,
            "command": " ".join(["hiso", *sys.argv[1:]]),
            "threads": 1,
            **describe(),
            "preset": preset.model_dump(mode="json"),
            **found,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
        (folder / "results.csv").write_text(_csv(found["rows"]))
        with observer.phase("drawing"):
            _draw(results, folder)
    return results


def _run(preset: Preset, folder: Path, cells: Any, observer: Observer) -> dict[str, Any]:
    if isinstance(preset, DimensionPreset):
        from hiso.lab.theory.dimension.dimension import run_dimension

        return run_dimension(preset, cells, observer)
    if isinstance(preset, CurvaturePreset):
        from hiso.lab.theory.curvature.digits import run_digits

        return run_digits(preset, folder, cells, observer)
    if isinstance(preset, OraclePreset):
        from hiso.lab.theory.oracle import run_oracle

        return run_oracle(preset, cells, observer)
    from hiso.lab.theory.language.language import run_language

    return run_language(preset, folder, cells, observer)


def _draw(results: dict[str, Any], folder: Path) -> None:
    from hiso.lab.theory.figures import DRAW

    DRAW[results["experiment"]](results, folder)


def _csv(rows: list[dict[str, Any]]) -> str:
    """Rows of scalars; lists are joined by spaces, and nested values are only in the JSON."""
    text = io.StringIO()
    header = list(
        dict.fromkeys(k for row in rows for k, value in row.items() if not isinstance(value, dict))
    )
    writer = csv.DictWriter(text, header, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}
        )
    return text.getvalue()
