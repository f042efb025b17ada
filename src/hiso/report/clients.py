"""The section about single clients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from hiso.report.gather import Run, in_words
from hiso.report.parts import PALETTE, Figure, Section, Table, View, numbers

CLIENT = {"title": {"text": "client"}, "tickformat": "d"}
_FAULTS = (
    "run", "client", "invalid", "silent", "wrong digest", "cut",
    "not asked since round", "asked again in round",
)  # fmt: skip
NAMED = re.compile(r"client (\d+)")

Ends = Mapping[int, tuple[float | None, float]]
"""For each client, an early figure of the run, if there is one, and a late figure."""


def clients_section(named: Mapping[str, Run]) -> Section | None:
    """Participation, loss, evaluations and faults of clients; None before the first round."""
    having = {name: run for name, run in named.items() if run.rounds}
    if not having:
        return None
    figures: list[Table | Figure] = [_participation(having)]
    losses = {name: _losses(run) for name, run in having.items()}
    if any(losses.values()):
        note = "On its batches: means over the first and the last fifth of its replies."
        figures.append(_ends("Training loss by client", "loss", losses, note))
    metrics = {m for run in having.values() for e in _evaluations(run) for m in e[1]}
    for metric in sorted(metrics, key=lambda m: (m == "loss", m)):
        ends = {name: _evaluated(run, metric) for name, run in having.items()}
        words = in_words(metric)
        title = f"{words[0].upper()}{words[1:]} by client"
        note = "On its own examples, at its first and its last evaluation."
        figures.append(_ends(title, words, ends, note))
    if faults := list(_faults(having)):
        figures.append(Table(_FAULTS, faults, "Faults, and times in which a client is not asked"))
    return Section("Clients", figures, "For the selected run.", list(having), "run")


def _faults(runs: Mapping[str, Run]) -> Iterator[list[str | float | None]]:
    """A line for each client of a run with whom something was wrong."""
    for name, run in runs.items():
        for line in run.log.troubled if run.log else []:
            yield [name, *line.values()]


def _participation(runs: Mapping[str, Run]) -> Figure:
    """For each client, in how many rounds its reply was used or set aside."""
    views: dict[str, View] = {}
    wasted = False
    for name, run in runs.items():
        counted = Counter(client for clients in run.clients for client in clients)
        replies = run.log.replies if run.log else []
        aside = Counter(reply.client for reply in replies if reply.set_aside is not None)
        wasted = wasted or bool(aside)
        clients = sorted({*range(run.settings.get("clients", 0)), *counted, *aside})
        heights = [[count[client] for client in clients] for count in (counted, aside)]
        views[name] = View({"x": [clients, clients], "y": heights}, _ticks(clients))
    data = [
        {
            "type": "bar",
            "name": words,
            "marker": {"color": colour},
            "hovertemplate": f"client %{{x}}: %{{y}} rounds {words}<extra></extra>",
        }
        for words, colour in (("counted", PALETTE[0]), ("set aside", PALETTE[1]))
    ]
    layout = {
        "xaxis": CLIENT,
        "yaxis": {"title": {"text": "rounds"}, "rangemode": "tozero"},
        "barmode": "stack",
        "hovermode": "closest",
        "showlegend": wasted,
    }
    note = "Rounds in which the client's reply was used"
    note += ", and in which it was set aside." if wasted else "."
    return Figure("Participation", data, layout, views, note=note)


def _losses(run: Run) -> Ends:
    """Early and late mean losses of the clients that replied."""
    found: dict[int, list[float]] = {}
    for reply in run.log.replies if run.log else []:
        if reply.loss is not None:
            found.setdefault(reply.client, []).append(reply.loss)
    ends: dict[int, tuple[float | None, float]] = {}
    for client, losses in sorted(found.items()):
        few = -(-len(losses) // 5)
        ends[client] = (fmean(losses[:few]) if len(losses) > 1 else None, fmean(losses[-few:]))
    return ends


def _evaluations(run: Run) -> Iterator[tuple[int, Mapping[str, float]]]:
    """(client, metrics) of every evaluation on a client's examples, by position."""
    for evaluation in sorted(run.evaluations, key=lambda e: e.position):
        if match := NAMED.fullmatch(evaluation.split):
            yield int(match[1]), evaluation.metrics


def _evaluated(run: Run, metric: str) -> Ends:
    found: dict[int, list[float]] = {}
    for client, metrics in _evaluations(run):
        if metric in metrics:
            found.setdefault(client, []).append(metrics[metric])
    return {c: (v[0] if len(v) > 1 else None, v[-1]) for c, v in sorted(found.items())}


def _ends(title: str, y: str, ends: Mapping[str, Ends], note: str) -> Figure:
    """Early and late figures of each client, joined by a line."""
    views = {name: _ends_view(each) for name, each in ends.items() if each}
    both = any(early is not None for each in ends.values() for early, _ in each.values())
    common = {"type": "scatter", "mode": "markers", "hovertemplate": "client %{x}: %{y:.4~g}"}
    ring = {"symbol": "circle-open", "size": 9, "color": PALETTE[1], "line": {"width": 2}}
    dot = {"symbol": "circle", "size": 9, "color": PALETTE[0]}
    joint = {"color": PALETTE[6], "width": 1}
    data = [
        {"type": "scatter", "mode": "lines", "line": joint, "hoverinfo": "skip"}
        | {"showlegend": False},
        common | {"name": "early", "marker": ring},
        common | {"name": "late", "marker": dot},
    ]
    layout = {
        "xaxis": CLIENT,
        "yaxis": {"title": {"text": y}},
        "hovermode": "closest",
        "showlegend": both,
    }
    return Figure(title, data, layout, views, log="y" if y == "loss" else "", note=note)


def _ends_view(ends: Ends) -> View:
    joints = [(c, v) for c, pair in ends.items() if pair[0] is not None for v in (*pair, None)]
    return View(
        {
            "x": [[client for client, _ in joints], list(ends), list(ends)],
            "y": [
                numbers([value for _, value in joints]),
                numbers([early for early, _ in ends.values()]),
                numbers([late for _, late in ends.values()]),
            ],
        },
        _ticks(list(ends)),
    )


def _ticks(clients: Sequence[int]) -> dict[str, Any]:
    """A tick for every client, if there is room."""
    return {"xaxis.dtick": 1 if len(clients) <= 12 else None}
