"""Zeroth-order methods, each a few pure pieces, and the table of their names."""

from __future__ import annotations

from hiso.core.method import Method
from hiso.core.methods.hiso import HiSo
from hiso.core.methods.hizoo import HiZoo
from hiso.core.methods.momentum import Momentum
from hiso.core.methods.zo_sgd import ZoSgd

METHODS: dict[str, type[Method]] = {m.name: m for m in (HiSo, ZoSgd, Momentum, HiZoo)}

__all__ = ["METHODS", "HiSo", "HiZoo", "Method", "Momentum", "ZoSgd"]
