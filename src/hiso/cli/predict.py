"""`hiso predict`: predictions of a tuned model for texts, a file of texts, or typed input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.export import Base, Place
from hiso.cli.options import Json

if TYPE_CHECKING:
    from hiso.export.predict import Predictor
    from hiso.workloads.text.task import Row, Task

_SHOWN = 100
"""Number of characters of an input that are shown again."""


def predict(
    source: Place,
    file: Annotated[
        Path | None,
        typer.Argument(
            help="A CSV, TSV or JSON Lines file with the task's columns; or - for texts line by "
            "line on standard input.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="A text, repeatable; for a task of several columns a JSON object.",
            show_default=False,
        ),
    ] = None,
    base: Base = None,
    beside: Annotated[
        bool, typer.Option("--base", help="Also show the predictions of the base model.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Predict with a tuned model: labels with probabilities, answers, or free text.

    Without a text or a file, it prompts for texts.
    """
    if text and file is not None:
        raise typer.BadParameter("give texts or a file, not both", param_hint="--text")
    typing = not text and file is None and sys.stdin.isatty()
    if typing and as_json:
        raise typer.BadParameter("give --text, a file, or - with it", param_hint="--json")
    from hiso.export.adapter import read_log
    from hiso.export.load import check_language, load
    from hiso.export.predict import Predictor
    from hiso.export.task import task_of

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        log = read_log(source)
        check_language(log)
        rows = [] if typing else _rows(file, text or [], task_of(log.identity))
        tuned = load(base, log, device=_device(), keep_base=beside, observer=watcher)
        predictor = Predictor(tuned)
        said = [] if typing else predictor(rows, watcher)
    if typing:
        _converse(predictor)
    elif as_json:
        facts = {"run": log.identity.run, "position": tuned.position, "task": predictor.task.name}
        digest = f"{tuned.digest:016x}"
        print(json.dumps({**facts, "digest": digest, "predictions": said}))
    else:
        _show(predictor.task, said)


def _device() -> Literal["cpu", "cuda"]:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _rows(file: Path | None, texts: Sequence[str], task: Task) -> Sequence[Row]:
    from hiso.data.files import read_rows
    from hiso.export.predict import rows_of

    if file is None or str(file) == "-":
        return rows_of(texts or [line for line in sys.stdin.read().splitlines() if line], task)
    return [row for _, row in read_rows(file)]


def _converse(predictor: Predictor) -> None:
    """Prompts for rows and shows predictions, until a line is empty or the input ends."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited
    print(f"task {predictor.task.name}; an empty line ends", file=sys.stderr)
    while row := _ask(predictor.task.columns):
        _show(predictor.task, predictor([row]), repeat=False)


def _ask(columns: Sequence[str]) -> Row | None:
    row: dict[str, str] = {}
    for name in columns:
        try:
            row[name] = input(f"{name}> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return None
        if not row[name]:
            return None
    return row


def _show(task: Task, said: Sequence[dict[str, Any]], *, repeat: bool = True) -> None:
    console = Console()
    for one in said:
        lines = [_shortened(task, one["input"])] if repeat else []
        for name in ("tuned", "base"):
            if name in one:
                lines += [f"  {name:<5}  {line}" for line in _in_words(one[name])]
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)


def _shortened(task: Task, row: Row) -> str:
    text = " | ".join(" ".join(str(row[name]).split()) for name in task.columns)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _in_words(said: dict[str, Any]) -> Iterator[str]:
    if "probabilities" in said:
        ranked = sorted(said["probabilities"].items(), key=lambda pair: -pair[1])
        yield "   ".join(f"{name} {share:.3f}" for name, share in ranked)
    elif "answer" in said:
        yield said["answer"] or "(nothing)"
    else:
        value = said["perplexity"]
        yield f"perplexity {'–' if value is None else f'{value:.4g}'}"
        yield f"continues: {said['continuation'] or '(nothing)'}"
