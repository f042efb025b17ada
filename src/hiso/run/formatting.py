"""Formats numbers for display."""

from __future__ import annotations

import math
from typing import Any


def size(count: float) -> str:
    """A number of bytes: 1.2 KB (1 KB is 1,000 bytes)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def figure(value: Any) -> str:
    """Any value in a few characters: 1,234, 0.6853, yes; – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
