"""Prepares a new or existing run in a folder: its settings, and its ledger for writing."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.errors import RunConflict
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.identity import check_identity
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
        RunConflict: The folder holds another run, other settings, or no run to change.
        ProtocolError: The log has no such position for the rollback.
    """
    if not folder.has_run():
        if changes or rollback is not None:
            raise RunConflict(
                f"{folder.path} holds no run yet: changes and a rollback need an existing run"
            )
        return parse_settings(given)
    own = set() if method is None else set(method.hyper) - set(Settings.model_fields)
    changes = {key: value for key, value in changes.items() if key not in own}
    with Ledger.read(folder.ledger) as ledger:
        ledger.check_rollback(rollback or 0)
        return merge_settings(folder.path, ledger.settings, given, changes)


Seen = tuple[str, dict[str, Any]]
"""A run's id and its settings, to detect whether another process has replaced them."""


def look(folder: RunFolder) -> Seen | None:
    """The run in a folder; None if it holds no run."""
    if not folder.has_run():
        return None
    with Ledger.read(folder.ledger) as ledger:
        return ledger.run, ledger.settings


@contextmanager
def open_ledger(
    folder: RunFolder,
    identity: Identity,
    settings: Settings,
    *,
    seen: Seen | None,
    patience: float = 0.0,
) -> Generator[Ledger]:
    """The run's ledger, locked for writing by this process.

    Args:
        folder: The run's folder; created for its owner alone if it does not exist.
        identity: The identity of a new run, or of the model and data loaded to resume one.
        settings: The settings of a new run.
        seen: The run in the folder when settings were resolved and identities compared.
        patience: Seconds to wait for another process to end.

    Raises:
        RunConflict: Another process still uses the folder after `patience` seconds; or another
            process has started or changed a run since `seen`.
    """
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with folder.lock(patience):
        if look(folder) != seen:
            raise RunConflict(
                f"another process has started or changed the run in {folder.path} meanwhile: "
                "start again to resume it"
            )
        with (
            Ledger.create(folder.ledger, identity, settings.model_dump())
            if seen is None
            else Ledger.open(folder.ledger) as ledger
        ):
            check_identity(ledger.identity, identity)
            yield ledger


def prepare(ledger: Ledger, settings: Settings, rollback: int | None, observer: Observer) -> None:
    """Rolls back, verifies the log, and stores changed settings.

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
