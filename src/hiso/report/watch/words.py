"""The facts of a run that goes on, in words: the same on a terminal and on a page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from hiso.run.formatting import duration, figure, named, size
from hiso.run.watch import Watched, WatchedClient

_COLUMNS = ("client", "site", "state", "last reply", "reply time", "quarantine", "last trouble")
_NOTHING = "–"
_LEVELS = "▁▂▃▄▅▆▇█"


class Cell(NamedTuple):
    """A cell of the table of clients.

    Attributes:
        text: What it says.
        wrong: Whether the operator may want to do something about it.
    """

    text: str
    wrong: bool = False


def facts(w: Watched) -> list[tuple[str, str]]:
    """Names and values of everything but the clients."""
    of = "" if w.planned is None else f" of {w.planned:,}"
    lines = [("state", _state(w)), ("rounds", f"{w.rounds:,}{of}")]
    if w.aborted:
        lines.append(("aborted attempts at this round", str(w.aborted)))
    if w.last_round_time is not None:
        ago = duration(max(0.0, time.time() - w.last_round_time))
        lines.append(("last round", f"{ago} ago"))
    if w.seconds_per_round is not None:
        left = "" if w.finished or w.seconds_left is None else f", {duration(w.seconds_left)} left"
        lines.append(("rate", f"{duration(w.seconds_per_round)} per round{left}"))
    if w.rounds:
        lines.append(("loss", "not reported" if w.loss is None else figure(w.loss)))
    if w.evaluation is not None:
        e = w.evaluation
        told = ", ".join(f"{name} {figure(value)}" for name, value in e.metrics.items())
        lines.append((f"{e.split}, position {e.position:,}", told))
    lines.append(("scalars", f"{size(w.bytes_up)} up, {size(w.bytes_down)} down"))
    if w.message_bytes_up:
        both = f"{size(w.message_bytes_up)} up, {size(w.message_bytes_down)} down"
        lines.append(("whole messages", both))
    if w.refusals:
        lines.append(("refused replies", f"{w.refusals:,}"))
    return lines


def _state(w: Watched) -> str:
    if w.finished:
        return "finished"
    if w.doing is None:
        return "not finished" if w.run else "there is no log yet"
    return f"a round, {named(w.asked)}" if w.doing == "rounds" and w.asked else w.doing


def client_table(w: Watched) -> tuple[list[str], list[list[Cell]]]:
    """Header and rows, one for each client; without columns that say nothing of any."""
    rows = [_row(client) for client in w.clients]
    told = [
        i for i in range(len(_COLUMNS)) if i == 0 or any(row[i].text != _NOTHING for row in rows)
    ]
    return [_COLUMNS[i] for i in told], [[row[i] for i in told] for row in rows]


def fitting(rows: list[list[Cell]], room: int) -> tuple[list[list[Cell]], int]:
    """At most `room` rows, those with a problem first if not all fit; and how many are left out."""
    if len(rows) > room:
        rows = sorted(rows, key=lambda row: not any(cell.wrong for cell in row))
    return rows[:room], max(0, len(rows) - room)


def _row(c: WatchedClient) -> list[Cell]:
    nothing = Cell(_NOTHING)
    state = nothing if c.here is None else Cell("here") if c.here else Cell("away", wrong=True)
    if c.withdrawn:
        state = Cell("withdrawn")
    time = nothing
    if c.reply is not None:
        more, slow = "" if c.reply.in_time else "> ", ", slow" if c.reply.slow else ""
        time = Cell(more + duration(c.reply.seconds) + slow, c.reply.slow)
    pause = nothing
    if c.paused_until is not None:
        pause = Cell(f"until round {c.paused_until}", wrong=True)
    trouble = _NOTHING if c.trouble is None else c.trouble
    if c.trouble_round is not None:
        trouble = f"round {c.trouble_round}: {trouble}"
    last = nothing if c.last_round is None else Cell(f"round {c.last_round}")
    return [Cell(str(c.client)), Cell(c.site or _NOTHING), state, last, time, pause, Cell(trouble)]


def sparkline(values: Sequence[float]) -> str:
    """The values as a line of blocks between their lowest and their highest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    span, top = high - low or 1.0, len(_LEVELS) - 1
    return "".join(_LEVELS[round(top * (value - low) / span)] for value in values)
