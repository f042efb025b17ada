"""`hiso.simulate` and `hiso.evaluate_run`: the command line's `run` and `eval`, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiso.core.method.base import Method
from hiso.core.method.registry import register
from hiso.errors import SettingsError
from hiso.run import launch as runs
from hiso.run.observer import Observer
from hiso.run.results import encode_summary
from hiso.run.settings import HYPER
from hiso.run.workload.objects import Objects
from hiso.workloads.text.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def simulate(
    *,
    out: str | Path,
    model: str | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task: str | Task | None = None,
    data: Any = None,
    method: str | Method | None = None,
    change: Mapping[str, Any] | None = None,
    rollback: int | None = None,
    observer: Observer | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Runs a federated fine-tune in this process, or goes on with the one in `out`.

    Example:
        >>> from hiso import HiSo, simulate
        >>> summary = simulate(
        ...     out="runs/first", method=HiSo(lr=3e-4), task="rotten_tomatoes", rounds=60
        ... )
        >>> summary["accuracy_after"]

    Args:
        out: The run's folder.
        model: A name or path; or a causal language model or classifier of transformers with float32
            weights, which is copied and stays as it is: `open_run` gives the trained one.
        tokenizer: That of a model that is an object.
        task: A name; or a task of your own.
        data: A path or an id; or a list of rows (each a dict), a Hugging Face data set, or a
            mapping with such as `train` and `test`.
        method: A name, with its hyper-parameters among `settings`; or a method, of your own too.
            By default that of the run, or HiSo.
        change: Settings, or hyper-parameters of a method of your own, that take a new value in a
            run that exists.
        rollback: Position to go back to first.
        observer: Is told what happens; see `hiso.run.observer.Observer`.
        **settings: Any other setting of `hiso.run.settings.Settings`, as on the command line.

    A run with objects goes on with the same objects alone: their fingerprints are compared.

    Returns:
        The content of summary.json.

    Raises:
        HisoError: See `hiso.run.launch.launch`.
    """
    names, objects = _sorted(model, tokenizer, task, data)
    settings = {**names, **settings}
    if isinstance(method, Method):
        register(type(method))
        known = {key: getattr(method, key) for key in HYPER if hasattr(method, key)}
        if twice := sorted(known.keys() & settings.keys()):
            raise SettingsError(f"{', '.join(twice)}: given twice, the method has it already")
        settings = {"method": method.name, **known, **settings}
    elif method is not None:
        settings = {"method": method, **settings}
    own = method if isinstance(method, Method) else None
    summary = runs.launch(
        settings,
        Path(out),
        changes=change,
        rollback=rollback,
        method=own,
        objects=objects,
        observer=observer,
    )
    return encode_summary(summary)


def evaluate_run(
    path: str | Path,
    *,
    position: int | None = None,
    split: str = "test",
    method: Method | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task: Task | None = None,
    data: Any = None,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Rebuilds the model of a run by replay, at `position` or the end, and evaluates it.

    Args:
        path: The run's folder.
        position: Number of rounds after which; by default where the run's model is kept.
        split: "test", "dev", or "client 0" and so on for what a client trains on.
        method: The run's method, if it is one of your own.
        model: The objects that the run was made with, if it was; like those that follow.
        tokenizer: See `simulate`.
        task: See `simulate`.
        data: See `simulate`.
        observer: Who watches.

    Returns:
        The metrics by name, with run, position, split and digest.

    Raises:
        HisoError: See `hiso.run.launch.evaluate_run`.
    """
    return runs.evaluate_run(
        Path(path),
        position=position,
        split=split,
        method=method,
        objects=Objects(model=model, tokenizer=tokenizer, task=task, data=data),
        observer=observer,
    )


def _sorted(
    model: Any, tokenizer: Any, task: str | Task | None, data: Any
) -> tuple[dict[str, str], Objects]:
    """The settings that say what a run is made of, and those of the values that are objects."""
    given = {"model": model, "task": task, "data": data}
    names = {k: str(v) for k, v in given.items() if isinstance(v, str | Path)}
    rest: dict[str, Any] = {k: v for k, v in given.items() if k not in names}
    objects = Objects(tokenizer=tokenizer, **rest)
    return {**names, **objects.settings}, objects
