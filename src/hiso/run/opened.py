"""`hiso.open_run`: an existing run, with its settings, figures, and model at any position."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hiso.core.method.base import Method
from hiso.core.method.registry import register
from hiso.core.replica.replica import Replica
from hiso.engines.replay import check_digest, last_agreed
from hiso.errors import ProtocolError, RunConflict
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.observer import Silent
from hiso.run.results import encode_line, encode_summary, in_order, kept_position, rounds_of
from hiso.run.settings import Settings, parse_settings
from hiso.run.snapshots import replay, stand
from hiso.run.workload.objects import Objects
from hiso.run.workload.text import describe_model
from hiso.run.workload.vision import load_network
from hiso.workloads.text.choice import FULL, Choice
from hiso.workloads.text.trained import choose, finish
from hiso.workloads.vision.images import DATA_SETS
from hiso.workloads.vision.models import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_run(
    folder: str | Path,
    *,
    method: type[Method] | None = None,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Run:
    """The run in a folder in its present state. Nothing is written, and no model is loaded yet.

    Example:
        >>> run = open_run("runs/first")
        >>> run.settings["lr"], run.metrics, run.model, run.at(40)

    Args:
        folder: The run's folder.
        method: The class of the run's method, if it is your own.
        model: The base model, if the run was made with an object. It is not changed.
        tokenizer: The model's tokenizer.

    Raises:
        ProtocolError: There is no run with a log of scalars, or the run is damaged.
        SettingsError: There is a model without a tokenizer, or a tokenizer without a model.
    """
    return Run(Path(folder), method, Objects(model=model, tokenizer=tokenizer))


class Run:
    """A run in its state when it was opened; see `open_run`.

    Attributes:
        folder: The run's folder.
        run: The run's id, the hex digits of the log's root.
        position: Number of rounds.
        settings: The current settings, by name.
        summary: The content of summary.json; None until the last round is done.
    """

    def __init__(self, folder: Path, method: type[Method] | None, objects: Objects) -> None:
        """See `open_run`."""
        self.folder, self._files = folder, RunFolder(folder)
        self._method, self._objects = method, objects
        if method is not None:
            register(method)
        with self._ledger() as ledger:
            ledger.verify()
            self.run, self.position, self.settings = ledger.run, ledger.position, ledger.settings
            self._kept = kept_position(ledger)
            lines = in_order(rounds_of(ledger), ledger.evaluations())
        self._lines = [encode_line(line) for line in lines]
        summary = self._files.read_summary()
        self.summary = None if summary is None else encode_summary(summary)
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def __repr__(self) -> str:
        return f"<run {self.run[:12]} in {self.folder}: {self.position} rounds>"

    @property
    def metrics(self) -> Any:
        """A row for each round and each evaluation, in order: a pandas DataFrame.

        The columns are the keys of metrics.jsonl. Without pandas the result is a list of dicts.
        """
        try:
            import pandas
        except ImportError:
            return [dict(line) for line in self._lines]
        return pandas.DataFrame(self._lines)

    @cached_property
    def model(self) -> Any:
        """The run's final model, according to its setting `keep`; see `at`."""
        return self.at(self._kept)

    @property
    def label_bias(self) -> NDArray[np.float64] | None:
        """b of `model`, float64 [C], to be added to the labels' scores; None without biases."""
        with self._ledger() as ledger:
            method = ledger.identity.method
            return method.biases(ledger.derived_at(method, method.derived, self._kept), {})

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer; None for a network on images. Loads the model if necessary."""
        settings = self._parsed
        if self._tokenizer is None and settings.task not in DATA_SETS:
            self._base(settings, FULL)
        return self._tokenizer

    def at(self, position: int) -> Any:
        """The model after `position` rounds, by replay: a new ordinary module, float32.

        The result is a `PreTrainedModel`, or an `nn.Module` for a run on images.

        The base model is loaded again, on the CPU; data are loaded only for images. The digest is
        compared with the clients' digest if that is known.

        Raises:
            ProtocolError: The log has no such position, or is damaged; or the run is one of
                `hiso.Federation`.
            LoadError: The base model cannot be loaded, or was an object and is not given.
            RunConflict: The loaded model is not the base model of the run.
        """
        settings = self._parsed
        with self._ledger() as ledger:
            ledger.chain_at(position)
            known = ledger.facts["model"]
            choice = Choice.of(ledger.identity.facts, known)
            module, description = self._base(settings, choice)
            if description != known:
                raise RunConflict(
                    f"the model that was loaded, {description}, is not the base model of the run, "
                    f"{known}: name or give that one"
                )
            replica = Replica(module, ledger.identity, memory=settings.memory)
            agreed = last_agreed(ledger, position)
            stand(self._files.snapshots, replica, ledger, agreed, Silent())
            check_digest(ledger, replica)
            replay(replica, ledger, position, Silent())
            module = replica.release()
            finish(module, choice)
            return module

    @property
    def _parsed(self) -> Settings:
        if "task" not in self.settings:
            raise ProtocolError(
                f"{self.folder} holds a run of a module of your own: hiso.replay gives its model"
            )
        return parse_settings({**self.settings, "device": "cpu"})

    def _ledger(self) -> Ledger:
        return Ledger.read(self._files.ledger, method=self._method)

    def _base(self, settings: Settings, choice: Choice) -> tuple[nn.Module, dict[str, Any]]:
        """The base model with the adapters of a choice, and the identity's entry for it."""
        if settings.task in DATA_SETS:
            network = load_network(settings)
            return network, {"fingerprint": fingerprint(network)}
        self._objects.check(settings, "model")
        lm = self._objects.load_model(settings)
        self._tokenizer = lm.tokenizer
        choice = choose(lm, choice, settings.seed)
        return lm.model, describe_model(lm, self._objects, choice)
