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
    """Runs a federated fine-tune in this process, or resumes the run in `out`.

    Example:
        >>> from hiso import HiSo, simulate
        >>> summary = simulate(
        ...     out="runs/first", method=HiSo(lr=3e-4), task="rotten_tomatoes", rounds=60
        ... )
        >>> summary["accuracy_after"]

    Args:
        out: The run's folder.
        model: A name or path; or a causal language model or classifier of transformers with
            float32 weights, which is copied and not changed: `open_run` returns the trained model.
        tokenizer: The tokenizer, if the model is an object.
        task: A name; or your own task.
        data: A path or an id; or a list of rows (each a dict), a Hugging Face data set, or a
            mapping of these with keys such as `train` and `test`.
        method: A name, with its hyper-parameters in `settings`; or a method object, which may be
            your own. By default the method of the run, or `subspace_newton`.
        change: New values for settings, or for hyper-parameters of your own method, in an existing
            run.
        rollback: Position to which to roll back first.
        observer: Receives the progress; see `hiso.run.observer.Observer`.
        **settings: Any other setting of `hiso.run.settings.Settings`, as on the command line.

    A run with objects can be resumed only with the same objects: their fingerprints are compared.

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
        position: Evaluate the model after this many rounds; by default the run's final model.
        split: "test", "dev", or "client 0" and so on for the training examples of a client.
        method: The run's method, if it is your own.
        model: The model object with which the run was made, if there was one.
        tokenizer: The same for the tokenizer; see `simulate`.
        task: The same for the task; see `simulate`.
        data: The same for the data; see `simulate`.
        observer: Receives the progress.

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
    """Separates the arguments into settings (names and paths) and objects."""
    given = {"model": model, "task": task, "data": data}
    names = {k: str(v) for k, v in given.items() if isinstance(v, str | Path)}
    rest: dict[str, Any] = {k: v for k, v in given.items() if k not in names}
    objects = Objects(tokenizer=tokenizer, **rest)
    return {**names, **objects.settings}, objects
