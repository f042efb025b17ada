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
        label_bias,
    )
    from hiso.core.replica import Replica
    from hiso.engines.federation import Federation
    from hiso.engines.replay import replay
    from hiso.engines.shards import DataShard
    from hiso.errors import HisoError
    from hiso.export.hub import push_to_hub
    from hiso.export.load import load
    from hiso.export.out import export_adapter, export_model, export_peft
    from hiso.export.predict import Predictor
    from hiso.federation.client import Client
    from hiso.federation.ledger import Ledger
    from hiso.federation.server import Server
    from hiso.federation.settings import RoundSettings
    from hiso.language.task import Task
    from hiso.run.api import evaluate_run, simulate
    from hiso.run.opened import open_run

_HOMES = {
    "Client": "hiso.federation.client",
    "DataShard": "hiso.engines.shards",
    "Federation": "hiso.engines.federation",
    "HiSo": "hiso.core.methods",
    "HiZoo": "hiso.core.methods",
    "HisoError": "hiso.errors",
    "Identity": "hiso.core.identity",
    "Ledger": "hiso.federation.ledger",
    "Method": "hiso.core.methods",
    "Momentum": "hiso.core.methods",
    "Predictor": "hiso.export.predict",
    "Replica": "hiso.core.replica",
    "RoundSettings": "hiso.federation.settings",
    "Server": "hiso.federation.server",
    "SubspaceNewton": "hiso.core.methods",
    "Task": "hiso.language.task",
    "ZoSgd": "hiso.core.methods",
    "auto_lr": "hiso.core.methods",
    "label_bias": "hiso.core.methods",
    "evaluate_run": "hiso.run.api",
    "export_adapter": "hiso.export.out",
    "export_model": "hiso.export.out",
    "export_peft": "hiso.export.out",
    "load": "hiso.export.load",
    "open_run": "hiso.run.opened",
    "push_to_hub": "hiso.export.hub",
    "replay": "hiso.engines.replay",
    "simulate": "hiso.run.api",
}

__all__ = [
    "Client",
    "DataShard",
    "Federation",
    "HiSo",
    "HiZoo",
    "HisoError",
    "Identity",
    "Ledger",
    "Method",
    "Momentum",
    "Predictor",
    "Replica",
    "RoundSettings",
    "Server",
    "SubspaceNewton",
    "Task",
    "ZoSgd",
    "auto_lr",
    "evaluate_run",
    "export_adapter",
    "export_model",
    "export_peft",
    "label_bias",
    "load",
    "open_run",
    "push_to_hub",
    "replay",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `import hiso` stays light."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hiso' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
