"""Formats numbers for display."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from hiso.errors import SettingsError


def size(count: float) -> str:
    """A number of bytes: 1.2 KB (1 KB is 1,000 bytes)."""
    for unit in ("B", "KB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def duration(seconds: float) -> str:
    """A time in two or three digits: 19 ms, 0.8 s, 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, longest in (("s", 120), ("min", 120), ("h", 48)):
        if seconds < longest:
            return f"{seconds:.1f} h" if unit == "h" else f"{seconds:.0f} {unit}"
        seconds /= 24 if unit == "h" else 60
    return f"{seconds:.1f} days"


def figure(value: Any) -> str:
    """Any value in a few characters: 1,234, 0.6853, yes; – for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def client_numbers(text: str) -> list[int]:
    """The numbers in a text such as "3" or "0-29,31", ascending.

    Raises:
        SettingsError: The text is something else.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,7})(?:-(\d{1,7}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise SettingsError(f"clients {text!r}: give a number, or like 0-29 or 2,5,7")
        found.update(range(first, last + 1))
    return sorted(found)


def named(clients: Sequence[int]) -> str:
    """Client numbers in words, not more than ten of them."""
    if len(clients) == 1:
        return f"client {clients[0]}"
    more = f" and {len(clients) - 10} more" if len(clients) > 10 else ""
    return f"clients {', '.join(map(str, clients[:10]))}{more}"


def are(clients: Sequence[int]) -> str:
    """The same with a verb."""
    return f"{named(clients)} {'is' if len(clients) == 1 else 'are'}"
