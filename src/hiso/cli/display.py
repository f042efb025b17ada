"""The display on the terminal: progress during a run, tables at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hiso.ring.ledger.runfile import Evaluation
from hiso.run.formatting import figure as _figure
from hiso.run.formatting import size
from hiso.run.observer import Advance
from hiso.run.results import Estimate, Round, Summary, decode_line
from hiso.workloads.text.tasks import headline

Render = Callable[[Console, dict[str, Any]], None]

_FACTS_WIDTH = 73
"""Width, in characters, of the progress line without its bar."""

_SHORT = {"accuracy": "acc", "perplexity": "ppl", "rougeL": "R-L"}
"""Short names of metrics."""

_PARTS = {"forward": "█", "directions": "▓", "step": "▒", "data": "░", "rest": "·"}
_BAR_WIDTH = 60

__all__ = [
    "Render",
    "Watcher",
    "benchmark",
    "diagnosis",
    "escape",
    "estimate_line",
    "experiment_tables",
    "findings",
    "inspection",
    "plain_table",
    "summary_table",
]


class Watcher:
    """Shows a run on a terminal; without a terminal prints only notices; with `quiet`, nothing."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        spare = console.width - _FACTS_WIDTH
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(24, max(4, spare))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}", markup=False),
            TextColumn("ETA"),
            TimeRemainingColumn(compact=True),
        ]
        if spare >= 40:
            columns = [SpinnerColumn(), *columns, TextColumn("elapsed"), TimeElapsedColumn()]
        self._progress = Progress(
            *columns, console=console, disable=quiet or not console.is_terminal
        )
        self._rounds: TaskID | None = None
        self._first = 0
        self._bytes = 0
        self._metric = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    @contextmanager
    def phase(self, text: str, total: int | None = None) -> Iterator[Advance]:
        """See `Observer.phase`."""
        task = self._progress.add_task(text, total=total, facts="")
        try:
            yield lambda units: self._progress.advance(task, units)
        finally:
            self._progress.remove_task(task)

    def estimated(self, estimate: Estimate) -> None:
        """See `Observer.estimated`."""
        if self._console.is_terminal:
            self._print(estimate_line(estimate), "dim")

    def started(self, position: int, rounds: int) -> None:
        """See `Observer.started`."""
        self._first = position
        self._rounds = self._progress.add_task("rounds", total=rounds, completed=position, facts="")
        if position == rounds:
            self.notice(f"all {rounds} rounds are done: delete the folder to start over")
        elif position:
            self.notice(f"resuming at round {position} of {rounds}")

    def round(self, done: Round) -> None:
        """See `Observer.round`."""
        assert self._rounds is not None
        self._bytes += done.bytes_up + done.bytes_down
        rate = "" if done.seconds is None else f" · {done.seconds:.2f} s/round"
        loss = "loss not reported" if done.loss is None else f"loss {done.loss:.3f}"
        facts = f"{loss}{self._metric} · {size(self._bytes)}{rate}"
        # Rounds of an earlier process would distort the estimate of the remaining time.
        completed = max(self._first, done.round + 1)
        self._progress.update(self._rounds, completed=completed, facts=facts)

    def evaluated(self, evaluation: Evaluation) -> None:
        """See `Observer.evaluated`."""
        name = headline(evaluation.metrics)
        if evaluation.split == "dev" and name is not None:
            value = evaluation.metrics[name]
            figure = f"{value:.4g}" if name == "perplexity" else f"{value:.1%}"
            self._metric = f" · {_SHORT.get(name, name)} {figure}"
        figures = ", ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items())
        self._print(f"position {evaluation.position:>5}  {evaluation.split:<4}  {figures}", "dim")

    def notice(self, text: str) -> None:
        """See `Observer.notice`."""
        self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        if not self._quiet:
            self._progress.console.print(
                text, style=style, highlight=False, markup=False, soft_wrap=True
            )


def estimate_line(e: Estimate) -> str:
    """The estimated cost of the remaining rounds, in one line."""
    minutes = f"{e.seconds / 60:.0f} min" if e.seconds >= 120 else f"{e.seconds:.0f} s"
    return (
        f"{e.rounds} rounds: about {minutes}, {size(e.bytes_up)} up, {size(e.bytes_down)} down, "
        f"{size(e.memory_bytes)} memory, {size(e.disk_bytes)} disk"
    )


def _table(title: str, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("", "")) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(header))
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def summary_table(console: Console, s: Summary, folder: Path) -> None:
    """The table at the end of `hiso run`."""
    rows: list[tuple[str, ...]] = []
    first = headline(s.metrics_after)
    for name in sorted(s.metrics_after, key=lambda name: name != first):
        before, after = s.metrics_before.get(name), s.metrics_after[name]
        rows.append((f"test {name}, before → after", f"{_figure(before)} → {_figure(after)}"))
    per_round = f"{_figure(s.seconds_per_round)} s"
    forward = f"{_figure(s.forward_seconds_per_round)} s in forward passes"
    sent = s.sent_bytes_up or 0, s.sent_bytes_down or 0
    rows += [
        ("rounds", _figure(s.rounds)),
        ("bytes up", f"{size(s.bytes_up)}  (FedAvg: {size(s.fedavg_bytes_up)})"),
        ("bytes down", f"{size(s.bytes_down)}  (FedAvg: {size(s.fedavg_bytes_down)})"),
        ("the paper's count", size(s.paper_bytes)),
        *_both_ways("whole messages", s.message_bytes_up, s.message_bytes_down),
        *_both_ways("sent between SuperLink and sites", *sent),
        ("seconds a round", f"{per_round}, {forward}"),
        ("peak memory", size(s.peak_memory_bytes)),
        ("trainable weights", _figure(s.trainable_weights)),
        ("data", s.data),
        ("digest", s.digest or "not known: no majority of workers reported it"),
        ("folder", str(folder)),
    ]
    settings = s.settings
    console.print(_table(f"{settings['method']} on {settings['task']}, {settings['model']}", rows))


def _both_ways(name: str, up: int, down: int) -> list[tuple[str, ...]]:
    """The bytes sent in a deployment, if there was one."""
    return [(name, f"{size(up)} up, {size(down)} down")] if up else []


def plain_table(console: Console, result: dict[str, Any]) -> None:
    """A table of any flat result."""
    console.print(_table("", [(name, _figure(value)) for name, value in result.items()]))


def inspection(console: Console, result: dict[str, Any]) -> None:
    """The output of `hiso inspect`."""
    settings, facts = result["settings"], result["facts"]
    console.print(_table("run", [(k, _figure(v)) for k, v in facts.items()]))
    hyper = [(name, _figure(value)) for name, value in result["hyper"].items()]
    console.print(_table(f"current hyper-parameters of {settings['method']}", hyper))
    console.print(_table("settings", [(k, _figure(v)) for k, v in settings.items()]))
    if result["changes"]:
        rows = [
            (str(c["position"]), c["key"], f"{_figure(c['old'])} → {_figure(c['new'])}")
            for c in result["changes"]
        ]
        console.print(_table("changes", rows, ("from round", "setting", "value")))
    if result["clients"]:
        rows = [tuple(_figure(value) for value in line.values()) for line in result["clients"]]
        faults = ("invalid", "silent", "wrong digest", "cut")
        header = ("client", *faults, "not asked since round", "asked again in round")
        console.print(_table("clients with faults", rows, header))
    if result["data_changes"]:
        rows = [(str(d["client"]), str(d["position"])) for d in result["data_changes"]]
        console.print(_table("clients whose data have changed", rows, ("client", "position")))
    if result["owners"]:
        rows = [(str(o["client"]), o["site"], o["key"]) for o in result["owners"]]
        console.print(_table("owners of client numbers", rows, ("client", "site", "key")))
    if result["refusals"]:
        rows = [
            tuple(_figure(r[key]) for key in ("client", "round", "reason"))
            for r in result["refusals"]
        ]
        console.print(_table("last refusals", rows, ("client", "round", "reason")))
    lines = [decode_line(line) for line in result["evaluations"]]
    evaluations = [line for line in lines if isinstance(line, Evaluation)]
    if evaluations:
        name = headline(evaluations[0].metrics) or "accuracy"
        rows = [
            (str(e.position), e.split, _figure(e.metrics.get("loss")), _figure(e.metrics.get(name)))
            for e in evaluations
        ]
        console.print(_table("evaluations", rows, ("position", "split", "loss", name)))
    rows = [
        (
            str(done.round),
            _figure(done.loss),
            ", ".join(map(str, done.clients)),
            " ".join(f"{g:+.3g}" for g in told["coefficients"]),
            size(done.bytes_up + done.bytes_down),
        )
        for told in result["rounds"]
        if isinstance(done := decode_line(told), Round)
    ]
    if rows:
        header = ("round", "loss", "clients", "coefficients", "bytes")
        console.print(_table("last rounds", rows, header))


def findings(console: Console, found: dict[str, Any]) -> None:
    """The output of `hiso worker check`."""
    problems = found["problems"]
    for name, rows in found.items():
        if name != "problems":
            console.print(_table(name, [(key, _words(value)) for key, value in rows.items()]))
    for problem in problems:
        console.print(
            f"[bold red]{escape(problem['where'])}:[/] {escape(problem['reason'])}",
            soft_wrap=True,
            highlight=False,
        )
    count = f"{len(problems)} would stop a run" if problems else "nothing found that stops a run"
    console.print(f"[{'red' if problems else 'green'}]{count}[/]", highlight=False)


def diagnosis(console: Console, report: dict[str, Any]) -> None:
    """The output of `hiso doctor`."""
    for name, rows in report.items():
        if isinstance(rows, dict):
            console.print(_table(name, [(key, _figure(value)) for key, value in rows.items()]))
    good = "[green]everything fits together[/]"
    console.print(good if report["healthy"] else "[red]backends disagree: please report this[/]")


def benchmark(console: Console, report: dict[str, Any]) -> None:
    """The output of `hiso bench`."""
    machine, versions = report["machine"], report["versions"]
    console.print(
        f"{machine['system']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['torch CPU features']}, hiso {versions['hiso']}, torch {versions['torch']}",
        highlight=False,
    )
    verdicts = {True: "met", False: "missed", None: "not measured"}
    rows = [
        (t["figure"], _figure(t["value"]), t["target"], verdicts[t["met"]])
        for t in report["targets"]
    ]
    console.print(_table("targets", rows, ("figure", "value", "target", "")))
    for dtype, split in report["split"].items():
        _bar(console, f"a round in {dtype}", split)
    splits = {f"hiso {dtype}": split for dtype, split in report["split"].items()}
    rows = [
        (
            name,
            f"{seconds:.2f}",
            *(f"{splits[name][part]:.2f}" if name in splits else "" for part in _PARTS),
        )
        for name, seconds in report["seconds"].items()
    ]
    console.print(_table("rounds, seconds", rows, ("", "in all", *_PARTS)))
    replay = report["replay"]
    work = replay["weights"] * replay["directions"]
    rows = [
        (rounds, _figure(seconds), _figure(work * int(rounds) / seconds))
        for rounds, seconds in replay["seconds"].items()
    ]
    header = ("rounds", "seconds", "weights·directions/s")
    console.print(_table("catching up on one thread", rows, header))
    memory = report["memory"]
    kinds = ("bytes_per_weight", "expected", "start_bytes_per_weight")
    rows = [
        (f"{kind} {method} {dtype}", *(_figure(memory[k][kind][method][dtype]) for k in kinds))
        for kind, methods in memory["bytes_per_weight"].items()
        for method, dtypes in methods.items()
        for dtype in dtypes
    ]
    title = "memory, bytes per trainable weight"
    console.print(_table(title, rows, ("", "in rounds", "by design", "at the start")))


def experiment_tables(console: Console, results: dict[str, Any]) -> None:
    """The results of `hiso theory`: some columns of some of its tables.

    A table that is wider than long is transposed.
    """
    for name, keys in results["tables"].items():
        header = [key.replace("_", " ") for key in keys]
        rows = [tuple(_words(row.get(key)) for key in keys) for row in results[name]]
        if len(rows) + 1 < len(header):
            header, *rows = zip(header, *rows, strict=True)
        console.print(_table(name, rows, tuple(header)))


def _words(value: Any) -> str:
    return " ".join(map(_figure, value)) if isinstance(value, list) else _figure(value)


def _bar(console: Console, title: str, parts: dict[str, float]) -> None:
    """The shares of the parts as one bar with a legend."""
    total = sum(parts.values())
    console.print(f"{title}: {_figure(total)} s", highlight=False)
    edges = [0.0, *accumulate(parts.values())]
    bar = [
        glyph * (round(_BAR_WIDTH * stop / total) - round(_BAR_WIDTH * start / total))
        for glyph, start, stop in zip(_PARTS.values(), edges, edges[1:], strict=False)
    ]
    console.print("".join(bar), highlight=False)
    legend = [f"{glyph} {name} {parts[name] / total:.1%}" for name, glyph in _PARTS.items()]
    console.print("  ".join(legend), highlight=False)
