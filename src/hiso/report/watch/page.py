"""The page of a run that goes on: self-contained HTML that renews itself, without a script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hiso.report.templates import render
from hiso.report.watch.words import client_table, facts, fitting
from hiso.run.watch import Watched

EVERY = 5
"""Seconds after which a browser asks for the page again."""
_ROWS = 500
"""Most clients in the table."""


def watch_page(w: Watched) -> str:
    """The page with the facts of this moment."""
    header, rows = client_table(w)
    rows, more = fitting(rows, _ROWS)
    return _render(
        w.folder,
        problem="",
        share=min(100.0, 100 * w.rounds / w.planned) if w.planned else None,
        facts=facts(w),
        curve=_points(w.losses),
        losses=w.losses,
        header=header,
        rows=rows,
        more=more,
    )


def problem_page(folder: str, problem: str) -> str:
    """The page while the run cannot be read."""
    return _render(folder, problem=problem)


def _render(folder: str, **values: object) -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    title = f"hiso: {Path(folder).resolve().name}"
    return render("watch.html", title=title, every=EVERY, now=now, **values)


def _points(losses: Sequence[float]) -> str:
    """The corners of the curve in a square of 100 by 100; empty for fewer than two losses."""
    if len(losses) < 2:
        return ""
    low, span = min(losses), max(losses) - min(losses) or 1.0
    step = 100 / (len(losses) - 1)
    return " ".join(
        f"{i * step:.2f},{96 - 92 * (v - low) / span:.2f}" for i, v in enumerate(losses)
    )
