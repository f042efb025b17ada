"""Writes the exports of a run: model folders, adapters, and PEFT adapters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiso.core.method.base import Method
from hiso.errors import SettingsError
from hiso.export.adapter import CARD, FILE, Adapter, public_name, read_log, read_run, write_file
from hiso.export.cards import Figures, adapter_card, model_card
from hiso.export.folders import check_free, whole
from hiso.export.load import Tuned, check_language, load
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder, write_text
from hiso.run.observer import Observer
from hiso.workloads.text.choice import Choice
from hiso.workloads.text.gguf import PACKAGED
from hiso.workloads.text.metrics import WITHOUT_BIAS
from hiso.workloads.text.models import quiet
from hiso.workloads.text.trained import save_peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def export_model(
    run: str | Path,
    out: str | Path,
    *,
    position: int | None = None,
    base: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: type[Method] | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Writes the model of a run as a folder for transformers: float32, with a model card.

    Args:
        run: The run's folder.
        out: The folder to write. It must not exist, or be empty.
        position: Export the model after this many rounds; by default the run's final model.
        base: The base model, if the run was made with an object; with its `tokenizer`.
        tokenizer: See `base`.
        method: The class of the run's method, if it is your own.
        observer: Receives the progress.

    Returns:
        Run, position, digest, folder and its bytes; and `label_bias` if the run tuned it. The
        folder has only the weights; its model card also has the biases. With `label_bias` the
        result also has `accuracy` and `accuracy_without_bias` on the test split, if known.

    Raises:
        RunConflict: `out` exists and is not empty.
        SettingsError: The run is not a run of a language model.
        HisoError: As `load`. After any error, nothing is written.
    """
    log = _checked(run, Path(out), position, method)
    tuned = load(base, log, tokenizer=tokenizer, observer=observer)
    figures = _figures(Path(run))
    told = _write_model(tuned, Path(out), model_card(log, tuned, figures))
    known = {e.position: e.metrics for e in figures.evaluations if e.split == "test"}
    found = known.get(log.position, {})
    named = ("accuracy", WITHOUT_BIAS)
    return told | ({name: found[name] for name in named} if WITHOUT_BIAS in found else {})


def export_adapter(
    run: str | Path,
    out: str | Path,
    *,
    position: int | None = None,
    base: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: type[Method] | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Writes the log of a run as an adapter: a safetensors file and a JSON card.

    The base model is loaded only if the ledger does not have both digests.

    Args:
        run: The run's folder.
        out: The folder to write. It must not exist, or be empty.
        position: Number of rounds; by default up to the run's final model.
        base: See `export_model`.
        tokenizer: See `export_model`.
        method: See `export_model`.
        observer: Receives the progress.

    Returns:
        Run, position, digest, folder and its bytes.

    Raises:
        HisoError: As `export_model`.
    """
    log = _checked(run, Path(out), position, method)
    if None in (log.before, log.after):
        tuned = load(base, log, tokenizer=tokenizer, observer=observer)
        log = replace(log, before=tuned.before, after=tuned.digest)
    assert log.after is not None
    with whole(Path(out)) as folder:
        write_file(log, folder / FILE)
        write_text(folder / CARD, json.dumps(adapter_card(log), indent=2) + "\n")
    return _told(log.identity.run, log.position, log.after, Path(out))


def export_peft(
    run: str | Path,
    out: str | Path,
    *,
    position: int | None = None,
    base: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: type[Method] | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Writes the adapters of a run that trained `lora` or `ia3` as a folder for PEFT.

    `peft.PeftModel.from_pretrained(base, out)` gives the tuned model. The folder also has the
    tokenizer and a model card.

    Args:
        run: The run's folder.
        out: The folder to write. It must not exist, or be empty.
        position: See `export_model`.
        base: See `export_model`.
        tokenizer: See `export_model`.
        method: See `export_model`.
        observer: Receives the progress.

    Returns:
        As `export_model`.

    Raises:
        SettingsError: The run trained no adapters.
        HisoError: As `export_model`.
    """
    log = _checked(run, Path(out), position, method)
    choice = Choice.of(log.identity.facts, log.identity.model)
    if not choice.adapts:
        raise SettingsError(
            f"the run trained {choice.kind}, which is no adapter of PEFT: export the model, or "
            "hiso's adapter"
        )
    tuned = load(base, log, tokenizer=tokenizer, merge=False, observer=observer)
    name = public_name(log.base)
    with whole(Path(out)) as folder, quiet():
        save_peft(tuned.model, folder, None if name in PACKAGED else name)
        tuned.tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", model_card(log, tuned, _figures(Path(run)), peft=True))
    return _told_of(tuned, Path(out))


def apply(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    method: type[Method] | None = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Applies an adapter to a base model and writes the result; see `load` and `export_model`.

    Args:
        adapter: As for `load`.
        out: The folder to write. It must not exist, or be empty.
        base: The base model; by default the one that the adapter names.
        method: The class of the run's method, if it is your own.
        observer: Receives the progress.

    Returns:
        As `export_model`.

    Raises:
        HisoError: As `load` and `export_model`. After any error, nothing is written.
    """
    check_free(Path(out))
    log = read_log(adapter, method=method)
    tuned = load(base, log, observer=observer)
    return _write_model(tuned, Path(out), model_card(log, tuned, None))


def _checked(
    run: str | Path, out: Path, position: int | None, method: type[Method] | None
) -> Adapter:
    """The log of a run, after checking that it can be exported to `out`."""
    check_free(out)
    log = read_run(Path(run), position, method=method)
    check_language(log)
    return log


def _write_model(tuned: Tuned, out: Path, card: str) -> dict[str, Any]:
    with whole(out) as folder, quiet():
        tuned.model.save_pretrained(folder)
        tuned.tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", card)
    return _told_of(tuned, out)


def _told_of(tuned: Tuned, out: Path) -> dict[str, Any]:
    told = _told(tuned.identity.run, tuned.position, tuned.digest, out)
    return told if tuned.biases is None else {**told, "label_bias": tuned.biases.tolist()}


def _told(run: str, position: int, digest: int, out: Path) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in out.iterdir())
    figures = {"run": run, "position": position, "digest": f"{digest:016x}"}
    return {**figures, "folder": str(out), "bytes": size}


def _figures(run: Path) -> Figures:
    """The data from a run's ledger for the model card."""
    folder = RunFolder(run)
    with Ledger.read(folder.ledger) as ledger:
        settings, evaluations = ledger.settings, ledger.evaluations()
    summary = folder.read_summary()
    source = "" if summary is None else summary.data
    return Figures(settings, source, evaluations)
