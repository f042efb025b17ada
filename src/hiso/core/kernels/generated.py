"""Writes generated source code to a cache folder, and imports it from there.

Because a generated module is a file, it can be read and debugged, and a compiler can store the
machine code next to it. The file name is a hash of everything on which the module depends.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType


def fill(template: str, **blocks: str | list[str]) -> str:
    """`template` with its placeholders filled; the lines of a block get the placeholder's
    indent.
    """
    lines: list[str] = []
    for line in template.splitlines():
        name = line.strip().removeprefix("{").removesuffix("}")
        block = blocks.get(name) if line.strip() == f"{{{name}}}" else None
        if block is None:
            lines.append(line.format(**blocks))
        else:
            block = block.splitlines() if isinstance(block, str) else block
            lines += [line[: line.index("{")] + inner for inner in block]
    return "\n".join(lines) + "\n"


@cache
def cache_folder() -> Path:
    """The folder of generated modules: the user's cache folder, or a temporary one if
    read-only.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "hiso" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="hiso-kernels-"))


def import_source(text: str, name: str, depends: Sequence[str]) -> ModuleType:
    """The module with this source: written, imported, and kept for the process.

    Args:
        text: The source code.
        name: A readable name of the module.
        depends: Other things on which the machine code depends.
    """
    digest = hashlib.sha256("\0".join([text, *depends]).encode()).hexdigest()[:16]
    name = f"hiso_{name}_{digest}"
    if name not in sys.modules:
        path = cache_folder() / f"{name}.py"
        if not path.exists() or path.read_text("utf-8") != text:
            partial = path.with_name(f"{name}.{os.getpid()}.partial")
            partial.write_text(text, "utf-8")
            os.replace(partial, path)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]
