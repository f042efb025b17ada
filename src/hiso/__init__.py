"""hiso: federated fine-tuning of language models that sends numbers, not tensors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiso.core.identity import Identity
    from hiso.core.method.registry import (
        HiSo,
        HiZoo,
        Method,
        Momentum,
        SubspaceNewton,
        ZoSgd,
        auto_lr,
        label_bias,
    )
    from hiso.core.replica.replica import Replica
    from hiso.data.shards import DataShard
    from hiso.engines.federation import Federation
    from hiso.engines.replay import replay
    from hiso.errors import HisoError
    from hiso.export.hub import push_to_hub
    from hiso.export.load import load
    from hiso.export.out import export_adapter, export_model, export_peft
    from hiso.export.predict import Predictor
    from hiso.ring.client import Client
    from hiso.ring.ledger.ledger import Ledger
    from hiso.ring.round_settings import RoundSettings
    from hiso.ring.server import Server
    from hiso.run.api import evaluate_run, simulate
    from hiso.run.opened import open_run
    from hiso.workloads.text.task import Task

_HOMES = {
    "Client": "hiso.ring.client",
    "DataShard": "hiso.data.shards",
    "Federation": "hiso.engines.federation",
    "HiSo": "hiso.core.method.registry",
    "HiZoo": "hiso.core.method.registry",
    "HisoError": "hiso.errors",
    "Identity": "hiso.core.identity",
    "Ledger": "hiso.ring.ledger.ledger",
    "Method": "hiso.core.method.registry",
    "Momentum": "hiso.core.method.registry",
    "Predictor": "hiso.export.predict",
    "Replica": "hiso.core.replica.replica",
    "RoundSettings": "hiso.ring.round_settings",
    "Server": "hiso.ring.server",
    "SubspaceNewton": "hiso.core.method.registry",
    "Task": "hiso.workloads.text.task",
    "ZoSgd": "hiso.core.method.registry",
    "auto_lr": "hiso.core.method.registry",
    "label_bias": "hiso.core.method.registry",
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
