"""Snapshots of a replica: they shorten a replay, and may be deleted at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hiso.core.record import Record
from hiso.core.replica.replica import Replica
from hiso.errors import ProtocolError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import storing
from hiso.run.observer import Observer

_KEEP = 2
_REPLAY_CHUNK = 20


def save_snapshot(folder: Path, replica: Replica) -> Path:
    """Saves the replica at the end of the log, and deletes all but the two newest snapshots.

    Raises:
        StorageError: The snapshot cannot be written; replay from the ledger works without it.
    """
    path = folder / f"position-{replica.position:08d}.safetensors"
    facts = {
        "position": str(replica.position),
        "chain": replica.chain.hex(),
        "digest": f"{replica.digest():016x}",
    }
    partial = folder / "snapshot.partial"
    with storing(path):
        folder.mkdir(exist_ok=True)
        try:
            save_file({"weights": replica.weights, **replica.state}, partial, metadata=facts)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)  # it was renamed to `path`, or is useless
    kept = sorted(folder.glob("position-*.safetensors"))
    last = kept.index(path) + 1
    for old in kept[: max(0, last - _KEEP)] + kept[last:]:  # too old, or of abandoned rounds
        old.unlink()
    return path


def restore_snapshot(folder: Path, replica: Replica, ledger: Ledger, last: int) -> int:
    """Restores the newest snapshot of this log up to position `last`; returns its position, or 0.

    Raises:
        ProtocolError: The snapshot's content does not match its digest.
    """
    for path in sorted(folder.glob("position-*.safetensors"), reverse=True):
        try:
            if _restore(path, replica, ledger, last):
                return replica.position
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path) from error
    return 0


def stand(folder: Path, replica: Replica, ledger: Ledger, target: int, observer: Observer) -> None:
    """Brings a replica to position `target`, from the newest suitable snapshot or from 0.

    Raises:
        ProtocolError: A snapshot or the log is damaged.
    """
    restore_snapshot(folder, replica, ledger, target)
    replay(replica, ledger, target, observer)


def replay(replica: Replica, ledger: Ledger, target: int, observer: Observer) -> None:
    """Folds the records from the replica's position up to position `target`.

    Raises:
        ProtocolError: The records do not give the ledger's chain hash at `target`.
    """
    fold(replica, ledger.records, target, observer)
    if replica.chain != ledger.chain_at(target):
        raise ProtocolError(
            f"{ledger.path} is damaged, or the replica is of another run: the records before "
            f"position {target} do not give the chain hash that was stored with them. Restore the "
            "file from a copy"
        )


def fold(
    replica: Replica,
    records: Callable[[int, int], Sequence[Record]],
    target: int,
    observer: Observer,
) -> None:
    """Folds records up to position `target`, and reports the progress.

    Args:
        replica: The replica, at `target` or before.
        records: Returns the records from one position up to another.
        target: The final position.
        observer: Receives the progress.

    Raises:
        ProtocolError: A record cannot be folded; see `Replica.replay`.
    """
    missing = target - replica.position
    if not missing:
        return
    with observer.phase(f"replaying {missing} rounds", missing) as advance:
        while replica.position < target:
            at = replica.position
            part = records(at, min(at + _REPLAY_CHUNK, target))
            replica.replay(part)
            advance(len(part))


def _restore(path: Path, replica: Replica, ledger: Ledger, last: int) -> bool:
    """Restores a snapshot, if it belongs to this log and is not after `last`."""
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        position, chain = int(facts["position"]), bytes.fromhex(facts["chain"])
        if position > last or ledger.chain_at(position) != chain:
            return False
        buffers: dict[str, torch.Tensor] = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    derived = ledger.derived_at(replica.method, replica.method.derived, position)
    replica.restore(buffers, position, chain, ledger.hyper_at(position), derived)
    if f"{replica.digest():016x}" != facts["digest"]:
        raise _damaged(path)
    return True


def _damaged(path: Path) -> ProtocolError:
    return ProtocolError(f"{path} is damaged: delete it, replay needs no snapshot")
