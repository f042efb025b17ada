"""The layers: every module imports only downwards, and light imports stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.metadata import requires
from pathlib import Path

import pytest

import hiso

ROOT = Path(hiso.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAYER = {
    "errors": 0,
    "core": 1,
    "data": 2,
    "ring": 2,
    "engines": 3,
    "workloads": 3,
    "run": 4,
    "export": 5,
    "flower": 5,
    "report": 5,
    "lab": 6,
    "cli": 7,
}
LAB = {"baselines": 0, "bench": 0, "compare": 1, "theory": 1}
HEAVY = "torch transformers numba datasets"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, *, loading: bool = False) -> Iterator[str]:
    """All imports, those in functions and under TYPE_CHECKING too; or those of loading alone."""
    tree = ast.parse(path.read_text())
    for node in tree.body if loading else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(name: str) -> tuple[int, str]:
    """Layer and name: hiso.core.record.Record is of `core`, hiso.lab.bench.rounds of `lab.bench`.

    The rooms of the laboratory are layers among themselves.
    """
    _, package, *rest = name.split(".")
    if package == "lab" and rest and rest[0] in LAB:
        return 10 * LAYER[package] + LAB[rest[0]], f"lab.{rest[0]}"
    return 10 * LAYER[package], package


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_module_imports_only_downwards(path):
    if path.parent == ROOT and path.stem in ("__init__", "__main__"):
        return  # the public names, which a subprocess below finds to be lazy; and the command
    layer, mine = room_of(module_of(path))
    for name in imports_of(path):
        if name.startswith("hiso."):
            below, other = room_of(name)
            assert other == mine or below < layer, f"{path} imports {name}"


def test_the_command_line_alone_imports_the_laboratory():
    for path in FILES:
        if path.relative_to(ROOT).parts[0] not in ("lab", "cli"):
            assert not [name for name in imports_of(path) if name.startswith("hiso.lab")], path


@pytest.mark.parametrize("path", sorted((ROOT / "core").rglob("*.py")), ids=module_of)
def test_the_core_needs_torch_and_numpy_alone(path):
    allowed = {"hiso", "torch", "numpy", *sys.stdlib_module_names}
    if path.parent.name == "kernels" and path.name.startswith("numba_"):
        allowed |= {"numba", "llvmlite"}
    assert {name.partition(".")[0] for name in imports_of(path)} <= allowed


def test_no_module_needs_itself_to_load():
    modules = {module_of(path): path for path in FILES if path.parent != ROOT}
    edges = {
        name: {
            imported if imported in modules else imported.rpartition(".")[0]
            for imported in imports_of(path, loading=True)
            if imported.startswith("hiso.")
        }
        for name, path in modules.items()
    }
    TopologicalSorter(edges).prepare()  # raises CycleError


def test_third_parties_are_declared():
    declared = {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in requires("hiso") or []}
    used = {name.partition(".")[0] for path in FILES for name in imports_of(path)}
    brought = {"huggingface_hub", "llvmlite", "pandas", "cryptography", "httpx"}  # by others: flwr
    called = {"sklearn": "scikit_learn"}
    used = {called.get(name, name) for name in used} - {"hiso", *sys.stdlib_module_names, *brought}
    assert used <= declared


@pytest.mark.parametrize(
    "work",
    [
        "import hiso; dir(hiso)",
        "import hiso.cli.app",
        "import hiso.cli.app; hiso.cli.app.app(['run', '--help'], standalone_mode=False)",
        "import hiso.flower.client_app",
        "import hiso.flower.server_app",
        "import hiso.run.settings; hiso.run.settings.parse_settings({})",
        "import hiso.lab.baselines.baseline_settings as s; s.parse_baseline({})",
    ],
)
def test_what_should_be_light_is_light(work):
    code = f"{work}\nimport sys\nprint('HEAVY', *(set('{HEAVY}'.split()) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "HEAVY"


def test_public_names_are_there():
    assert {name for name in hiso.__all__ if getattr(hiso, name).__name__ == name} == set(
        hiso.__all__
    )
    with pytest.raises(AttributeError, match="no attribute 'hizo'"):
        hiso.hizo  # noqa: B018
