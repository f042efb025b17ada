"""Every error that hiso raises on purpose, with the exit code of the command line.

A message says what was wrong, where, and what to do. Exit codes:

| code | meaning |
|---|---|
| 0 | success |
| 1 | a defect in hiso or in a library: please report it |
| 2 | `SettingsError`: a setting, flag or file of settings is wrong |
| 3 | `RunConflict`: the run folder belongs to another run, or to other settings |
| 4 | `Diverged`: the loss is not finite or has exploded; nothing of that round was recorded |
| 5 | `LoadError`: a model, task or data set cannot be loaded as asked |
| 6 | `ProtocolError`: a record, plan, ledger or replica does not fit the run it is used in |
| 7 | `StorageError`: the disk is full, or a file cannot be read or written |
| 130 | interrupted; the ledger holds every finished round; start again to resume |
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any, ClassVar

# Error numbers of a disk that is full, damaged, or not writable.
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
}


class HisoError(Exception):
    """The base class of all errors of hiso."""

    exit_code: ClassVar[int] = 1


class SettingsError(HisoError):
    """A setting is unknown, out of range, or contradicts another one."""

    exit_code = 2


class RunConflict(HisoError):
    """A run folder holds another run than the requested one.

    Attributes:
        settings: The settings that differ, by name: (value in the run, requested value).
    """

    exit_code = 3

    def __init__(
        self, problem: str, *, settings: Mapping[str, tuple[Any, Any]] | None = None
    ) -> None:
        self.settings = settings or {}
        super().__init__(problem)


class Diverged(HisoError):
    """The loss is not finite or has exploded. The ledger keeps the last good round.

    Attributes:
        position: The last position with a normal loss, to which to roll back; None if this
            position is not known, or if no weight has changed yet.
        lr: A suggested learning rate, half of the current one.
        round: The round with the bad loss; None if the problem was found between rounds.
        client: The client that measured the bad loss; None if no single client did.
    """

    exit_code = 4

    def __init__(
        self,
        problem: str,
        *,
        position: int | None = None,
        lr: float | None = None,
        round: int | None = None,
        client: int | None = None,
    ) -> None:
        self.position, self.lr, self.round, self.client = position, lr, round, client
        if position is not None and lr is not None:
            problem += (
                f" The last round with a normal loss is {position}: go back to position {position} "
                f"and go on with a smaller step, lr = {lr:.3g}."
            )
        super().__init__(problem)


class NonFiniteLoss(Diverged):
    """A loss measured by a client is NaN or infinite."""


class LoadError(HisoError):
    """A model, task or data set cannot be loaded as asked."""

    exit_code = 5


class ProtocolError(HisoError):
    """A record, plan, ledger or replica does not fit the run it is used in.

    Attributes:
        position: The last position before the damage, to which to roll back; None if a rollback
            does not help.
    """

    exit_code = 6

    def __init__(self, problem: str, *, position: int | None = None) -> None:
        self.position = position
        super().__init__(problem)


class RoundAborted(ProtocolError):
    """All allowed attempts at a round were aborted. The ledger keeps the rounds before it.

    Attributes:
        round: The number of the round, which stays the next round.
        attempts: Number of attempts.
        reason: Why the last attempt was aborted, and what to do.
    """

    def __init__(
        self, problem: str, *, round: int = 0, attempts: int = 1, reason: str = ""
    ) -> None:
        self.round, self.attempts, self.reason = round, attempts, reason
        super().__init__(problem)


class StorageError(HisoError):
    """The disk is full, or a file cannot be read or written. The ledger keeps all rounds."""

    exit_code = 7

    @classmethod
    def of(cls, path: object, cause: Exception) -> StorageError:
        """The error for a file, from the exception of the system or of a library."""
        said = cause.strerror if isinstance(cause, OSError) and cause.strerror else cause
        return cls(
            f"{path}: {said}. Free space on its disk, or make it a place that can be read and "
            "written; then start again: every finished round is kept"
        )
