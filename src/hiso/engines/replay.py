"""`hiso.replay`: rebuilds a replica from the base model and the ledger, for a late joiner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from hiso.core.fingerprint import fingerprint
from hiso.core.identity import Identity
from hiso.core.kernels import Backend
from hiso.core.method.base import Method
from hiso.core.replica.replica import Memory, Replica
from hiso.errors import ProtocolError, RunConflict
from hiso.ring.ledger.ledger import Ledger


def replay(
    ledger: str | Path,
    model: nn.Module,
    *,
    position: int | None = None,
    method: type[Method] | None = None,
    memory: Memory = "full",
    backend: Backend = "auto",
) -> Replica:
    """The replica at a position of a run's log, from the base model and the records alone.

    The digest is compared with the clients' digest at the last position, up to `position`, for
    which the clients have agreed on a digest.

    Example:
        >>> late = replay("toy.sqlite", network())
        >>> late.module(x)          # the model with the weights at that position

    Args:
        ledger: The ledger's file, also of an active run; the file is only read.
        model: The base model of the run, untrained. Its parameters become part of the replica;
            call the replica's `release()` to get an ordinary module again.
        position: Number of records to fold; by default all.
        method: The class of the run's method, if it is your own.
        memory: As for `Replica`.
        backend: As for `Replica`.

    Returns:
        The replica; its `module` has the weights at that position.

    Raises:
        ProtocolError: There is no ledger, the ledger is damaged or has no such position, or the
            digest differs from that of the run: `model` is not the base model, or was changed.
        RunConflict: The ledger has a fingerprint of the base model, and `model` has another one.
        SettingsError: As `Replica`.
    """
    with Ledger.read(ledger, method=method) as log:
        log.verify()
        target = log.position if position is None else position
        log.chain_at(target)
        check_model(log.identity, model)
        replica = Replica(model, log.identity, memory=memory, backend=backend)
        known = last_agreed(log, target)
        replica.replay(log.records(0, known))
        check_digest(log, replica)
        replica.replay(log.records(known, target))
    replica.write()
    return replica


def describe_model(model: nn.Module) -> dict[str, str]:
    """The identity's entry for a base model that is the user's own module."""
    return {"module": fingerprint(model)}


def check_model(identity: Identity, model: nn.Module) -> None:
    """Checks that a module is the base model, if the identity has a module's fingerprint.

    Raises:
        RunConflict: The module is not the base model.
    """
    known = identity.model if isinstance(identity.model, Mapping) else {}
    if "module" in known and known != describe_model(model):
        raise RunConflict(
            "the model is not the one that the run began with: its weights, buffers, or which of "
            "its parameters are trained differ. Make the base model again, untrained"
        )


def last_agreed(ledger: Ledger, position: int) -> int:
    """The last position up to `position` for which the clients agreed on a digest, or 0."""
    at, _ = ledger.last_digest(position) or (0, None)
    return at


def check_digest(ledger: Ledger, replica: Replica) -> None:
    """Compares a replica's digest with the clients' digest, if that is known for its position.

    Raises:
        ProtocolError: The digests differ.
    """
    known = ledger.digest_at(replica.position)
    if known is not None and known != replica.digest():
        raise ProtocolError(
            f"the replica has digest {replica.digest():016x} at position {replica.position}, the "
            f"clients of {ledger.path} had {known:016x}: replay from the base model of the run"
        )
