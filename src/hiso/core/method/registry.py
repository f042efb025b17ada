"""The built-in zeroth-order methods, and the table of their names."""

from __future__ import annotations

from hiso.core.method.auto_lr import auto_lr, with_auto_lr
from hiso.core.method.base import Method
from hiso.core.method.hiso import HiSo
from hiso.core.method.hizoo import HiZoo
from hiso.core.method.label_bias import label_bias, with_label_bias
from hiso.core.method.momentum import Momentum
from hiso.core.method.subspace_newton import SubspaceNewton
from hiso.core.method.zo_sgd import ZoSgd
from hiso.errors import SettingsError

METHODS: dict[str, type[Method]] = {
    m.name: m for m in (HiSo, ZoSgd, Momentum, HiZoo, SubspaceNewton)
}

__all__ = [
    "METHODS",
    "HiSo",
    "HiZoo",
    "Method",
    "Momentum",
    "SubspaceNewton",
    "ZoSgd",
    "auto_lr",
    "label_bias",
    "register",
    "with_auto_lr",
    "with_label_bias",
]


def register(kind: type[Method]) -> None:
    """Registers a method under its name. A class may be defined again, for example in a notebook.

    Raises:
        SettingsError: The name belongs to another method.
    """
    known = METHODS.get(kind.name, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise SettingsError(f"the name {kind.name!r} belongs to another method: rename yours")
    METHODS[kind.name] = kind
