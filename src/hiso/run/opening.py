"""A folder's run, begun or gone on with: its settings, and its ledger ready to be written to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hiso.core.method import Method
from hiso.errors import RunConflict
from hiso.federation.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.observer import Observer
from hiso.run.resume import merge_settings
from hiso.run.settings import Settings, parse_settings


def resolve_settings(
    folder: RunFolder,
    given: Mapping[str, Any],
    changes: Mapping[str, Any],
    rollback: int | None,
    method: Method | None,
) -> Settings:
    """The settings of the run in a folder, or of the new one.

    Raises:
        SettingsError: The settings are wrong.
        RunConflict: The folder holds another run, other settings, or none to change.
        ProtocolError: The log is not long enough to roll back.
    """
    if not folder.has_run():
        if changes or rollback is not None:
            raise RunConflict(
                f"{folder.path} holds no run yet: --change and --rollback alter one that exists"
            )
        return parse_settings(given)
    own = set() if method is None else set(method.hyper) - set(Settings.model_fields)
    changes = {key: value for key, value in changes.items() if key not in own}
    with Ledger.open(folder.ledger) as ledger:
        ledger.check_rollback(rollback or 0)
        return merge_settings(folder.path, ledger.settings, given, changes)


@contextmanager
def open_ledger(
    folder: RunFolder, identity: Mapping[str, Any], settings: Settings, *, patience: float = 0.0
) -> Iterator[Ledger]:
    """The run's ledger, for this process alone to write to.

    Raises:
        RunConflict: Another process is at work on it, and still is after `patience` seconds.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with (
        folder.lock(patience),
        Ledger.open(folder.ledger)
        if folder.has_run()
        else Ledger.create(folder.ledger, identity, settings.model_dump()) as ledger,
    ):
        yield ledger


def prepare(ledger: Ledger, settings: Settings, rollback: int | None, observer: Observer) -> None:
    """Rolls back, verifies the log, and notes what has changed.

    Raises:
        ProtocolError: The log is damaged, or has no such position.
    """
    if rollback is not None:
        abandoned = ledger.position - rollback
        ledger.rollback(rollback)
        observer.notice(f"rolled back to position {rollback}: {abandoned} rounds set aside")
    ledger.verify()
    for change in ledger.change(settings.model_dump()):
        observer.notice(f"{change.key}: {change.old} → {change.new} from round {change.position}")
