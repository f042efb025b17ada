"""The state of a baseline run in one file, so that the run can be resumed after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hiso.errors import ProtocolError
from hiso.run.folder import storing


@dataclass(frozen=True)
class Checkpoint:
    """The state after `position` rounds.

    Attributes:
        position: Number of finished rounds.
        settings: The run's settings.
        identity: The run's identity.
        weights: The replica's flat float32 weights.
        state: The server's moments by name.
    """

    position: int
    settings: Mapping[str, Any]
    identity: Mapping[str, Any]
    weights: torch.Tensor
    state: Mapping[str, NDArray[Any]]

    def save(self, path: Path) -> None:
        """Writes the file, completely or not at all."""
        facts = {
            "position": str(self.position),
            "settings": json.dumps(self.settings),
            "identity": json.dumps(self.identity),
        }
        tensors = {name: torch.from_numpy(value) for name, value in self.state.items()}
        partial = path.with_name(path.name + ".partial")
        with storing(path):
            save_file({"weights": self.weights, **tensors}, partial, metadata=facts)
            os.replace(partial, path)


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, if there is one.

    Raises:
        ProtocolError: The checkpoint is damaged.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Checkpoint(
            int(facts["position"]),
            json.loads(facts["settings"]),
            json.loads(facts["identity"]),
            tensors.pop("weights"),
            {name: tensor.numpy() for name, tensor in tensors.items()},
        )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ProtocolError(
            f"the checkpoint {path} is damaged ({error}): delete it, and the run starts again"
        ) from error
