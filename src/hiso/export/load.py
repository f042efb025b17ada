"""`hiso.load`: the tuned model, from a base model and a log of scalars, by one replay."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hiso.core.identity import Identity
from hiso.core.method.base import Method
from hiso.core.replica.replica import Replica
from hiso.errors import LoadError, ProtocolError, SettingsError
from hiso.export.adapter import Adapter, read_log
from hiso.run.observer import Observer, Silent
from hiso.run.snapshots import fold
from hiso.run.workload.objects import Objects
from hiso.run.workload.text import describe_model
from hiso.workloads.text.choice import Choice
from hiso.workloads.text.models import LanguageModel, copy_model, load_model
from hiso.workloads.text.trained import choose, finish

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False, repr=False)
class Tuned:
    """The language model of a run, as an ordinary model.

    Attributes:
        lm: Model and tokenizer, in the form that hiso's own functions use.
        base: The same before the first round; None unless it was requested.
        identity: The identity of the run.
        position: Number of rounds.
        before: Digest of the replica at position 0.
        digest: Digest of the replica at the position.
        biases: Added to the scores of the task's labels, float64 [C]: a part of the tuned model
            that is not in its weights. None without biases; see `hiso.label_bias`.
    """

    lm: LanguageModel
    base: LanguageModel | None
    identity: Identity
    position: int
    before: int
    digest: int
    biases: NDArray[np.float64] | None

    @property
    def model(self) -> PreTrainedModel:
        """An ordinary transformers model, float32, in eval mode."""
        return self.lm.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self.lm.tokenizer

    def __repr__(self) -> str:
        return (
            f"<{type(self.model).__name__} after {self.position} rounds of run "
            f"{self.identity.run[:12]}, digest {self.digest:016x}>"
        )


def load(
    base: str | Path | PreTrainedModel | None,
    adapter: str | Path | Adapter,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    method: type[Method] | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    keep_base: bool = False,
    merge: bool = True,
    observer: Observer | None = None,
) -> Tuned:
    """The tuned model: all records of an adapter folded into the base model.

    The base model is checked before the replay and the result after it, by their digests.

    Example:
        >>> tuned = load("smollm2", "my-adapter")
        >>> tuned.model.generate(...)

    Args:
        base: The base model: a packaged name, a folder, a .gguf file, a Hugging Face id, or a
            model object, which is copied. None to use the name stored in the adapter.
        adapter: An adapter's folder, file or Hugging Face id; a run's folder; or an `Adapter`.
        tokenizer: The tokenizer of a base model that is an object.
        method: The class of the run's method, if it is your own.
        device: The device for the replay and the resulting model. The bits do not depend on it.
        keep_base: Whether to keep a copy of the base model too.
        merge: Whether to merge a run's trained adapters (`train` = lora, ia3) into
            the weights. Otherwise the model keeps PEFT's layers, and frozen parameters stay frozen.
        observer: Receives the progress.

    Raises:
        ProtocolError: The base model is not that of the adapter, or the adapter is damaged or of
            another version; the message says which.
        LoadError: The adapter or the base model cannot be loaded.
        SettingsError: The adapter does not belong to a language model; or only one of model object
            and tokenizer is given.
    """
    observer = observer or Silent()
    if not isinstance(adapter, Adapter):
        adapter = read_log(adapter, method=method)
    check_language(adapter)
    base = adapter.base if base is None else base
    with observer.phase(f"loading model {base if isinstance(base, str | Path) else ''}"):
        lm, objects = _load_base(base, tokenizer)
    kept = replace(lm, model=copy.deepcopy(lm.model)) if keep_base else None
    identity = adapter.identity
    choice = choose(lm, Choice.of(identity.facts, identity.model), identity.seed)
    found = describe_model(lm, objects, choice)
    for each in [lm] if kept is None else [lm, kept]:
        each.model.to(device)  # pyright: ignore[reportArgumentType]
    with observer.phase("preparing kernels"):
        replica = Replica(lm.model, adapter.identity, memory="lean")
        before = replica.digest()
    _check_base(adapter, found, before, lm.name)
    fold(replica, lambda start, stop: adapter.records[start:stop], adapter.position, observer)
    after, biases = replica.digest(), replica.biases
    if adapter.after not in (None, after):
        raise ProtocolError(
            f"after {adapter.position} records the replica has digest {after:016x}, and not "
            f"{adapter.after:016x} as in the run: the adapter is damaged, or the run was"
        )
    replica.release()
    if merge:
        finish(lm.model, choice)
    return Tuned(lm, kept, adapter.identity, adapter.position, before, after, biases)


def check_language(adapter: Adapter) -> None:
    """Checks that a log belongs to a language model on a task.

    Raises:
        SettingsError: It does not.
    """
    identity = adapter.identity
    places = identity.task, identity.model, identity.data
    keys = ("name", "template", "labels"), ("fingerprint",), ("max_length",)
    if not all(
        isinstance(place, dict) and place.keys() >= set(needed)
        for place, needed in zip(places, keys, strict=True)
    ):
        raise SettingsError(
            "the run is not a run of a language model, so it cannot be exported. From Python, "
            "hiso.open_run gives the network of a run on images, and hiso.replay a module of your "
            "own"
        )


def _load_base(
    base: str | Path | PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[LanguageModel, Objects]:
    """The base model, and the objects from which it was made."""
    if base is None or (isinstance(base, str) and base.startswith("own:")):
        raise LoadError(
            "the adapter does not name its base model, which was a local file or a Python object: "
            "name or pass the base model"
        )
    if isinstance(base, str | Path):
        return load_model(str(base)), Objects()
    if tokenizer is None:
        raise SettingsError("a model object and its tokenizer object go together: give both")
    return copy_model(base, tokenizer), Objects(model=base, tokenizer=tokenizer)


def _check_base(adapter: Adapter, found: dict[str, Any], before: int, name: str) -> None:
    known: Any = adapter.identity.model
    if found == known and adapter.before in (None, before):
        return
    if found == known:
        reason = "the digest of its weights differs: the adapter is damaged"
    elif found["fingerprint"] == known["fingerprint"]:
        reason = "it is the same, but in the run other parameters of it were trained"
    elif adapter.before == before:
        reason = "its weights are the same, but its tokenizer or its buffers are not"
    else:
        reason = (
            "its weights differ: it is another model, another revision of it, or the same one "
            "stored with another precision"
        )
    made = f" ({adapter.base})" if adapter.base else ""
    raise ProtocolError(
        f"{name} is not the base model of the adapter{made}: {reason}. Fingerprints: {found} here, "
        f"{known} in the adapter; digests: {before:016x} here, {adapter.before or 0:016x} there. "
        "Name the base model that the run was made with"
    )
