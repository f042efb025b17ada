"""The command `hiso` in real processes, forked from one that has imported the slow libraries."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

_FORK = get_context("forkserver")
_FORK.set_forkserver_preload(["tests.warm"])


def _command(arguments: list[str], folder: str, out: str, err: str, into: str = os.devnull) -> None:
    import torch

    from hiso.cli import main

    torch.set_num_threads(1)
    os.chdir(folder)
    os.dup2(os.open(into, os.O_RDWR), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.argv = ["hiso", *arguments]
    main()


@dataclass
class Done:
    code: int | None
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which is one JSON object and nothing else, on one line."""
        assert self.out.count("\n") == 1
        return json.loads(self.out, parse_constant=lambda name: _refuse(name))


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


class Hiso:
    """Starts `hiso ARGUMENTS` in a folder, with files there or a terminal as its three streams."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, *arguments: object, terminal: str | None = None, stdin: str = "") -> Any:
        (self.folder / ".in").write_text(stdin)
        streams = [terminal or str(self.folder / name) for name in (".out", ".err", ".in")]
        texts = [str(argument) for argument in arguments]
        process = _FORK.Process(target=_command, args=(texts, str(self.folder), *streams))
        process.start()
        return process

    def end(self, process: Any) -> Done:
        process.join()
        out, err = ((self.folder / name).read_text() for name in (".out", ".err"))
        return Done(process.exitcode, out, err)

    def __call__(self, *arguments: object, stdin: str = "") -> Done:
        return self.end(self.start(*arguments, stdin=stdin))


def flags(settings: dict[str, Any]) -> Sequence[str]:
    """Settings as flags."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words
