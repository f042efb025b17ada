"""Adapters: a run's log up to a position, in a file that can be used on another machine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.record import Record
from hiso.errors import LoadError, ProtocolError
from hiso.export.columns import Arrays, pack_records, unpack_records
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.results import kept_position
from hiso.workloads.text.gguf import PACKAGED

FORMAT = 1
FILE = "hiso_adapter.safetensors"
CARD = "hiso_adapter.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, eq=False)
class Adapter:
    """The log of a run up to a position; with the base model it gives the tuned model.

    Attributes:
        identity: The run's identity.
        records: Records 0, 1, … up to the position.
        base: Name of the base model; None if the name is valid only on one machine.
        before: Digest of the replica at position 0; None if it is not known.
        after: Digest of the replica at the position; None if it is not known.
    """

    identity: Identity
    records: tuple[Record, ...]
    base: str | None
    before: int | None = None
    after: int | None = None

    @property
    def position(self) -> int:
        """The number of records."""
        return len(self.records)

    @cached_property
    def chain(self) -> bytes:
        """Chain hash of the log at the position, 32 bytes."""
        chain = self.identity.root
        for record in self.records:
            chain = record.chain(chain)
        return chain

    @cached_property
    def hyper(self) -> dict[str, float]:
        """The hyper-parameters at the position."""
        hyper = dict(self.identity.method.hyper)
        for record in self.records:
            hyper |= record.changes
        return hyper


def read_log(place: str | Path, *, method: type[Method] | None = None) -> Adapter:
    """The log in a run's folder or in an adapter.

    Args:
        place: A run's folder, an adapter's folder or file, or the Hugging Face id of an adapter.
        method: The class of the run's method, if it is your own.

    Raises:
        ProtocolError: The run or adapter is damaged or of another version.
        LoadError: There is neither a run nor an adapter.
    """
    folder = Path(place).expanduser()
    if RunFolder(folder).has_run():
        return read_run(folder, method=method)
    return read_adapter(place, method=method)


def read_run(
    run: Path, position: int | None = None, *, method: type[Method] | None = None
) -> Adapter:
    """The log in a run's folder up to a position, by default up to the run's final model.

    Raises:
        ProtocolError: There is no run or no such position, or the log is damaged.
    """
    folder = RunFolder(run)
    with Ledger.read(folder.ledger, method=method) as ledger:
        ledger.verify()
        at = kept_position(ledger) if position is None else position
        chain, before, after = ledger.chain_at(at), ledger.digest_at(0), ledger.digest_at(at)
        if after is None:
            after = folder.read_digest(chain)
        model = ledger.settings.get("model")
        return Adapter(ledger.identity, tuple(ledger.records(0, at)), model, before, after)


def public_name(model: str | None) -> str | None:
    """The name of a base model, if it is valid on any machine: packaged, or a Hugging Face id."""
    if model is None or model in PACKAGED:
        return model
    local = Path(model).expanduser().exists() or model.lower().endswith(".gguf")
    return model if _HUB_ID.fullmatch(model) and not local else None


def write_file(adapter: Adapter, path: Path) -> None:
    """Writes an adapter whose digests are known as one safetensors file.

    Raises:
        ProtocolError: The log cannot be stored without loss.
        StorageError: See `storing`, within which this function must be called.
    """
    arrays, names = pack_records(adapter.records)
    facts = {
        "format": str(FORMAT),
        "hiso": version("hiso"),
        "identity": adapter.identity.text,
        "names": json.dumps(names),
        "base": public_name(adapter.base) or "",
        "chain": adapter.chain.hex(),
        "digest_before": f"{adapter.before:016x}",
        "digest_after": f"{adapter.after:016x}",
    }
    _parse(arrays, facts, type(adapter.identity.method))
    save_file(arrays, path, facts)


def read_adapter(place: str | Path, *, method: type[Method] | None = None) -> Adapter:
    """The adapter in a folder or file, or with a Hugging Face id.

    Raises:
        LoadError: There is no adapter.
        ProtocolError: The adapter is damaged, of another version, or of an unknown method.
    """
    path = _find(place)
    try:
        with safe_open(path, framework="np") as file:
            facts = file.metadata() or {}
            arrays: Arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise LoadError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, TypeError, KeyError) as error:
        raise ProtocolError(f"{path} is damaged, or no safetensors file: {error}") from error
    try:
        return _parse(arrays, facts, method)
    except ProtocolError as error:
        raise ProtocolError(f"{path} cannot be used as an adapter: {error}") from error


def _parse(arrays: Arrays, facts: Mapping[str, str], method: type[Method] | None) -> Adapter:
    if (found := facts.get("format")) != str(FORMAT):
        raise ProtocolError(
            f"it has adapter format {found}, this hiso reads {FORMAT}: use the version of hiso "
            f"that wrote it ({facts.get('hiso', 'unknown')})"
        )
    try:
        identity, names = facts["identity"], json.loads(facts["names"])
        before, after = (int(facts[f"digest_{when}"], 16) for when in ("before", "after"))
        base, chain = facts["base"] or None, bytes.fromhex(facts["chain"])
    except (KeyError, ValueError) as error:
        raise ProtocolError(f"its header is damaged: {error!r}") from error
    records = tuple(unpack_records(arrays, names))
    adapter = Adapter(Identity.parse(identity, method), records, base, before, after)
    if adapter.chain != chain:
        raise ProtocolError("its records do not give its chain hash: it is damaged")
    return adapter


def _find(place: str | Path) -> Path:
    """The file of an adapter, if necessary from the Hugging Face hub or its cache."""
    path = Path(place).expanduser()
    if path.is_dir():
        if not (path / FILE).is_file():
            raise LoadError(f"{path} holds neither a run nor an adapter (no {FILE})")
        return path / FILE
    if path.is_file():
        return path
    if isinstance(place, Path) or not _HUB_ID.fullmatch(place):
        raise LoadError(f"there is no run and no adapter at {path}")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(place, FILE))
    except Exception as error:  # huggingface_hub raises unrelated exception types
        raise LoadError(
            f"cannot load the adapter {place}: {error}\nIt is not a local folder, so it was "
            "looked up "
            "on Hugging Face. Check the name and the connection."
        ) from error
