"""Resident memory of this process, and its peak during a piece of work. Linux only."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")
_M_MMAP_THRESHOLD = -3


def measurable() -> bool:
    """Whether the system lets a process reset its peak."""
    try:
        _reset_peak()
    except OSError:
        return False
    return True


def keep_nothing() -> None:
    """Makes malloc return every freed tensor to the system, instead of keeping some for later."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc
        mallopt(_M_MMAP_THRESHOLD, 2**16)


def resident() -> int:
    """Present resident memory, in bytes."""
    return _status("VmRSS")


def peak_of(work: Callable[[], object]) -> int:
    """Peak of resident memory during `work`, in bytes."""
    _reset_peak()
    work()
    return _status("VmHWM")


def _reset_peak() -> None:
    (_PROCESS / "clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = (_PROCESS / "status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) * 1024
