"""Plain zeroth-order SGD; in a federation that shares scalars this is DeComFL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hiso.core.method.base import Method


@dataclass(frozen=True, kw_only=True)
class ZoSgd(Method):
    """w ← w − lr · (1/P) Σ_p g_p u_p.

    Source: DeComFL (ICLR 2025), Algorithm 1; HiSo with H ≡ 1.
    Deviation: the noise is `binomial` by default, not normal.
    """

    name: ClassVar[str] = "zo_sgd"
