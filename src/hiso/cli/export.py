"""`hiso export`, `apply` and `diff`: exporting the model of a run, and using adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hiso.cli import display
from hiso.cli.options import Json
from hiso.run.formatting import figure, size

Run = Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)]
Place = Annotated[
    str,
    typer.Argument(
        help="A run's folder; or an adapter's folder or Hugging Face id.", show_default=False
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The base model, by its name, folder or Hugging Face id.",
        show_default=False,
    ),
]


def export(
    run: Run,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Write the model here, as a folder for transformers.", show_default=False
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="Write the log of scalars here, as an adapter.", show_default=False),
    ] = None,
    peft: Annotated[
        Path | None,
        typer.Option(help="Write LoRA or IA3 here, as a folder for PEFT.", show_default=False),
    ] = None,
    position: Annotated[
        int | None,
        typer.Option(min=0, help="Position of the log; default: that of the final model."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export the model of a run for transformers, for PEFT, or as an adapter of some KB."""
    from hiso.export import out

    kinds = ((model, out.export_model), (adapter, out.export_adapter), (peft, out.export_peft))
    wanted = [(place, write) for place, write in kinds if place is not None]
    if len(wanted) != 1:
        raise typer.BadParameter("give one of them", param_hint="--model / --adapter / --peft")
    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        place, write = wanted[0]
        done = write(run, place, position=position, observer=watcher)
    _show_folder(done, as_json)


def apply(
    adapter: Place,
    out: Annotated[Path, typer.Option(help="Write the tuned model here.", show_default=False)],
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Rebuild the tuned model from an adapter and its base model; write it for transformers."""
    from hiso.export.out import apply

    with display.Watcher(Console(stderr=True), quiet=as_json) as watcher:
        done = apply(adapter, out, base=base, observer=watcher)
    _show_folder(done, as_json)


def _without_bias(done: dict[str, Any]) -> str:
    """A note that the exported weights do not contain the label biases."""
    told = "The weights do not include the label biases; README.md in the folder lists them."
    if (without := done.get("accuracy_without_bias")) is not None:
        told += f" Test accuracy {done['accuracy']:.4f} with them, {without:.4f} without."
    return told


def diff(a: Place, b: Place, as_json: Json = False) -> None:
    """Show where the logs of two runs or adapters begin to differ. Loads no model."""
    from hiso.export.diff import diff

    told = diff(a, b)
    if as_json:
        print(json.dumps(told))
        return
    for line in _in_words(told):
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _show_folder(done: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(done))
        return
    told = f"position {done['position']}, digest {done['digest']}, {size(done['bytes'])}"
    lines = [f"{done['folder']}: {told}"]
    if "label_bias" in done:
        lines.append(_without_bias(done))
    for line in lines:
        Console().print(line, highlight=False, markup=False, soft_wrap=True)


def _in_words(told: dict[str, Any]) -> list[str]:
    position = told["position"]
    lines = [
        f"{log['place']}: {log['rounds']} rounds, digest {figure(log['digest'])}"
        for log in (told["a"], told["b"])
    ]
    lines.append(f"base model: {'the same' if told['base_equal'] else 'another'}")
    lines.append(f"identity: {'the same' if told['identity_equal'] else 'another'}")
    lines += [f"  {difference}" for difference in told["differences"]]
    ends = [first is None for first in told["first"]]
    if all(ends):
        return [*lines, f"logs: the same {position} records"]
    if any(ends):
        shorter = told["ab"[ends.index(True)]]["place"]
        return [*lines, f"logs: the same up to position {position}, where {shorter} ends"]
    return [
        *lines,
        f"logs: they differ from position {position}, with the coefficients",
        *("  " + " ".join(f"{c:+.3g}" for c in first["coefficients"]) for first in told["first"]),
    ]
