"""A site's side of the protocol: what it refuses, how it draws batches, and what it remembers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from hiso.core.keys import secret_mark, secret_seed
from hiso.core.method.base import Method
from hiso.errors import ProtocolError, StorageError
from hiso.ring.answers import Answers
from hiso.ring.client import Client
from hiso.ring.messages import Plan, Reply
from hiso.ring.site_settings import SiteSettings, Value, differences
from hiso.ring.wire import hash_question

ANSWERS, KEY, MARK = "answers.sqlite", "batches.key", "data.mark"
_KEY_BYTES = 32


class Site:
    """Stands between a server and the clients of one folder; for one process at a time.

    Example:
        >>> known = site.recall(plan)  # the bytes that were sent before
        >>> if known is None:
        ...     site.check(plan, method, batch=16)
        ...     reply = site.answer(plan, client)
        ... else:
        ...     client.catch_up(plan)

    Attributes:
        settings: What it allows and shows.
    """

    def __init__(
        self, folder: Path, settings: SiteSettings, expected: Mapping[str, Value] | None = None
    ) -> None:
        """Opens the answers and the key in `folder`; creates what is missing, so that only the
        owner can read it.

        Args:
            folder: An existing folder.
            settings: The settings.
            expected: The values that every plan must have, by the names in `must_match`.

        Raises:
            ProtocolError: A file is damaged.
            StorageError: A file cannot be read or written.
        """
        self.settings, self._expected = settings, expected or {}
        self._key, self._mark = _read_key(folder / KEY), folder / MARK
        self._answers = Answers(folder / ANSWERS)

    @property
    def sent(self) -> int:
        """float32 numbers in all replies so far, over all runs."""
        return self._answers.sent

    def batch_seed(self, run: str) -> int | None:
        """The secret seed of a run's batches; None if they are drawn from the run's own seed."""
        return secret_seed(self._key, run) if self.settings.batches == "secret" else None

    def mark_data(self, fingerprint: str) -> tuple[str, bool]:
        """A mark of the site's data, and whether the last call had data with another mark.

        See `secret_mark`: it shows only whether data have changed.

        Raises:
            StorageError: The mark cannot be read or stored.
        """
        mark = secret_mark(self._key, fingerprint)
        try:
            before = self._mark.read_text() if self._mark.exists() else None
            if before != mark:
                self._mark.write_text(mark)
        except OSError as error:
            raise StorageError.of(self._mark, error) from error
        return mark, before not in (None, mark)

    def recall(self, plan: Plan) -> bytes | None:
        """The bytes with which this plan was answered before, or None.

        Before they are sent again, the client should `catch_up` with the plan: from a reply the
        server concludes where the replica stands.
        """
        return self._answers.find(hash_question(plan))

    def check(self, plan: Plan, method: Method, batch: int) -> None:
        """Checks a plan before anything is allocated, folded or rolled back for it.

        Args:
            plan: The plan.
            method: The run's method.
            batch: Number of examples in the client's batches.

        Raises:
            ProtocolError: The plan asks for more than the site allows; the message says what.
        """
        sent, reached = self._answers.sent, self._answers.reached(plan.run)
        problems = self.settings.problems(plan, method, batch, sent=sent, reached=reached)
        _refuse(plan, list(problems))

    def answer(self, plan: Plan, client: Client) -> Reply:
        """Folds missing records, measures, and keeps the reply, which may then be sent.

        Call it for plans that `recall` does not know and `check` allows.

        Raises:
            ProtocolError: A value is not the one that the site insists on, and nothing was
                measured; or as `Client.answer`.
            NonFiniteLoss: A loss is NaN or infinite.
        """
        client.catch_up(plan)
        _refuse(plan, list(differences(plan, client.replica.hyper, self._expected)))
        reply = self.settings.show(client.answer(plan))
        self._answers.keep(reply)
        return reply

    def close(self) -> None:
        """Closes its file."""
        self._answers.close()


def _refuse(plan: Plan, problems: list[str]) -> None:
    if problems:
        raise ProtocolError(
            f"client {plan.client} refuses the plan of round {plan.round}: " + "; ".join(problems)
        )


def _read_key(path: Path) -> bytes:
    """The key in a file; a missing one is made of random bytes, completely or not at all."""
    try:
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            partial.unlink(missing_ok=True)
            with os.fdopen(
                os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb"
            ) as f:
                f.write(secrets.token_bytes(_KEY_BYTES))
                f.flush()
                os.fsync(f.fileno())
            partial.replace(path)
        key = path.read_bytes()
    except OSError as error:
        raise StorageError.of(path, error) from error
    if len(key) != _KEY_BYTES:
        raise ProtocolError(
            f"{path} has {len(key)} bytes, not {_KEY_BYTES}: restore it from a copy; or delete it, "
            "and the worker makes a new key"
        )
    return key
