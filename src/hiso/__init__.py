"""hiso: federated fine-tuning of language models that sends numbers, not tensors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiso.core.identity import Identity
    from hiso.core.methods import (
        HiSo,
        HiZoo,
        Method,
        Momentum,
        SubspaceNewton,
        ZoSgd,
        auto_lr,
    )
    from hiso.core.replica import Replica
    from hiso.errors import HisoError
    from hiso.run.api import simulate
    from hiso.run.launch import evaluate_run

_HOMES = {
    "HiSo": "hiso.core.methods",
    "HiZoo": "hiso.core.methods",
    "HisoError": "hiso.errors",
    "Identity": "hiso.core.identity",
    "Method": "hiso.core.methods",
    "Momentum": "hiso.core.methods",
    "Replica": "hiso.core.replica",
    "SubspaceNewton": "hiso.core.methods",
    "ZoSgd": "hiso.core.methods",
    "auto_lr": "hiso.core.methods",
    "evaluate_run": "hiso.run.launch",
    "simulate": "hiso.run.api",
}

__all__ = [
    "HiSo",
    "HiZoo",
    "HisoError",
    "Identity",
    "Method",
    "Momentum",
    "Replica",
    "SubspaceNewton",
    "ZoSgd",
    "auto_lr",
    "evaluate_run",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import hiso` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hiso' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
