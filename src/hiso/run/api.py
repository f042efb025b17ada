"""`hiso.simulate`: the command line's `hiso run`, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiso.core.method import Method
from hiso.core.methods import register
from hiso.errors import SettingsError
from hiso.run.launch import launch
from hiso.run.observer import Observer
from hiso.run.results import encode_summary
from hiso.run.settings import HYPER


def simulate(
    *,
    out: str | Path,
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
        method: A name, with its hyper-parameters among `settings`; or a method, of your own too.
            By default that of the run, or HiSo.
        change: Settings, or hyper-parameters of a method of your own, that take a new value in a
            run that exists.
        rollback: Position to go back to first.
        observer: Is told what happens; see `hiso.run.observer.Observer`.
        **settings: Any other setting of `hiso.run.settings.Settings`, as on the command line.

    Returns:
        The content of summary.json.

    Raises:
        HisoError: See `hiso.run.launch.launch`.
    """
    if isinstance(method, Method):
        register(type(method))
        known = {key: getattr(method, key) for key in HYPER if hasattr(method, key)}
        if twice := sorted(known.keys() & settings.keys()):
            raise SettingsError(f"{', '.join(twice)}: given twice, the method has it already")
        settings = {"method": method.name, **known, **settings}
    elif method is not None:
        settings = {"method": method, **settings}
    own = method if isinstance(method, Method) else None
    summary = launch(
        settings, Path(out), changes=change, rollback=rollback, method=own, observer=observer
    )
    return encode_summary(summary)
