"""The written page: its numbers against the ledger, and that it needs nothing but itself."""

from __future__ import annotations

import json
import sys
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import plotly.graph_objects as go
import pytest

from hiso import simulate
from hiso.errors import LoadError, ProtocolError, SettingsError
from hiso.report.page import write_report
from hiso.report.parts import Figure, Section, Table, View, line_style
from hiso.ring.accept.quarantine import FAULTS, WINDOW
from hiso.ring.ledger.ledger import Ledger

from .conftest import PASSES

pytestmark = pytest.mark.usefixtures("one_thread")


class Page(HTMLParser):
    """The parts of a page that tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.titles: list[str] = []
        self.json = ""
        self._open = ""
        self._id: str | None = None
        self.feed(text)
        self.figures = json.loads(self.json)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open, self._id = tag, dict(attrs).get("id")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2"):
            self.titles.append("")

    def handle_data(self, data):
        if self._open in ("td", "th"):
            self.tables[-1][-1][-1] += data.strip()
        elif self._open in ("h1", "h2"):
            self.titles[-1] += data.strip()
        elif self._open == "script" and self._id == "figures":
            self.json += data

    def figure(self, title: str) -> dict:
        (found,) = (figure for figure in self.figures if figure["title"] == title)
        return found

    def rows(self, *header: str) -> list[dict[str, str]]:
        (found,) = (t for t in self.tables if t[0][: len(header)] == list(header))
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def write(paths, out, **options) -> Page:
    write_report(paths, out, **{"title": "Runs"} | options)
    return Page(out.read_text())


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Page:
    return write(list(runs.values()), tmp_path_factory.mktemp("page") / "report.html")


def trace(figure, name, choice):
    """(x, y) of the trace with this name and mode, as it is shown for a choice."""
    names = [(trace.get("name"), trace.get("mode")) for trace in figure["data"]]
    index = names.index(name)
    shown = {key: each[index] for key, each in figure["views"][choice]["data"].items()}
    shown = figure["data"][index] | shown
    return shown["x"], shown["y"]


def test_it_has_all_sections(page):
    assert page.titles == [
        "Runs",
        "Results",
        "Curves",
        "Costs",
        "Scalars",
        "Learned diagonal h",
        "Clients",
        "Settings",
    ]
    assert [figure["title"] for figure in page.figures] == [
        "Accuracy",
        "F1",
        "Loss",
        "Training loss",
        "Size of the scalars",
        "Distribution of the scalars",
        "Histogram of h along the run",
        "Participation",
        "Training loss by client",
    ]


def test_every_figure_is_one_that_plotly_knows(page):
    """Plotly's own classes refuse unknown attributes and values."""
    for figure in page.figures:
        go.Figure({"data": figure["data"], "layout": figure["layout"]})
        for view in figure["views"].values():
            drawn = go.Figure({"data": figure["data"], "layout": figure["layout"]})
            drawn.update_layout({k.replace(".", "_"): v for k, v in view["layout"].items()})
            for name, values in view["data"].items():
                assert len(values) == len(figure["data"])
                for shown, value in zip(drawn.data, values, strict=True):
                    if value is not None:
                        shown[name] = value


def test_curves_are_the_evaluations(page, runs):
    with Ledger.open(runs["zo"] / "ledger.sqlite") as ledger:
        rows, evaluations = ledger.rounds(), ledger.evaluations()
    spent = np.cumsum([0, *(row.bytes_up + row.bytes_down for row in rows)])
    for metric, title in (("accuracy", "Accuracy"), ("loss", "Loss")):
        for split, words, mode in (("dev", "tuning", "lines"), ("test", "test", "markers")):
            points = [(e.position, e.metrics[metric]) for e in evaluations if e.split == split]
            name = (f"zo_sgd, lr 0.01, {words}", mode)
            x, y = trace(page.figure(title), name, "Rounds")
            assert x == [at for at, _ in points]
            assert y == pytest.approx([value for _, value in points], rel=1e-5)
            x, _ = trace(page.figure(title), name, "Bytes")
            assert x == [spent[at] for at, _ in points]


def test_bands_are_the_deviation_over_seeds(page, runs):
    losses = []
    for name in ("hiso-0", "hiso-1"):
        with Ledger.open(runs[name] / "ledger.sqlite") as ledger:
            losses.append(ledger.losses())
    mean, deviation = np.mean(losses, axis=0), np.std(losses, axis=0, ddof=1)
    figure = page.figure("Training loss")
    x, y = trace(figure, ("hiso, lr 0.01", "lines"), "Rounds")
    assert x == list(range(6))
    assert y == pytest.approx(mean, rel=1e-5)
    (band,) = (
        trace
        for trace in figure["data"]
        if trace.get("fill") == "toself" and trace["legendgroup"] == "hiso, lr 0.01"
    )
    outline = [*(mean - deviation), *(mean + deviation)[::-1]]
    assert band["y"][:-1] == pytest.approx(outline, rel=1e-5)


def test_passes_are_an_axis_of_the_runs_that_tell_them(page):
    figure = page.figure("Training loss")
    assert list(figure["views"]) == ["Rounds", "Bytes", "Forward passes"]
    for name in ("fedavg, lr 0.01", "zo_sgd, lr 0.01"):
        x, _ = trace(figure, (name, "lines"), "Forward passes")
        assert x == [PASSES * n for n in range(6)]


def test_without_passes_there_is_no_such_axis(runs, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    lines = [json.loads(x) for x in (runs["bare"] / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("passes", None)
    (older / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write([older], tmp_path / "report.html")
    assert list(page.figure("Loss")["views"]) == ["Rounds", "Bytes"]


def test_scalars_are_those_of_the_replies(page, runs):
    with Ledger.open(runs["zo"] / "ledger.sqlite") as ledger:
        replies = list(ledger.replies())
    by_round = [
        np.concatenate([r.scalars.ravel() for r in replies if r.round == n]).astype(np.float64)
        for n in range(6)
    ]
    x, y = trace(page.figure("Distribution of the scalars"), ("median", "lines"), "zo_sgd, lr 0.01")
    assert x == list(range(6))
    assert y == pytest.approx([np.median(g) for g in by_round], rel=1e-5)
    sizes = page.figure("Size of the scalars")["data"]
    (line,) = (t for t in sizes if t.get("name") == "zo_sgd, lr 0.01")
    assert line["y"] == pytest.approx([np.sqrt((g**2).mean()) for g in by_round], rel=1e-5)
    assert not any(t.get("name") == "fedavg, lr 0.01" for t in sizes)


def test_clients_are_those_of_the_ledger(page, runs):
    with Ledger.open(runs["zo"] / "ledger.sqlite") as ledger:
        counts = Counter(client for row in ledger.rounds() for client in row.clients)
        losses = {}
        for reply in ledger.replies():
            losses.setdefault(reply.client, []).append(reply.loss)
    for run in ("zo_sgd, lr 0.01", "fedavg, lr 0.01"):
        view = page.figure("Participation")["views"][run]["data"]
        assert view["x"][0] == [0, 1, 2, 3]
        assert view["y"][0] == [counts[client] for client in range(4)]
        assert view["y"][1] == [0, 0, 0, 0]
    figure = page.figure("Training loss by client")
    assert "fedavg, lr 0.01" not in figure["views"]
    x, y = trace(figure, ("late", "markers"), "zo_sgd, lr 0.01")
    assert x == sorted(losses)
    assert y == pytest.approx([losses[client][-1] for client in x], rel=1e-5)


def test_accuracy_of_clients_is_shown_if_it_was_recorded(copy, tmp_path):
    folder = copy("hiso-0")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        for client in range(4):
            ledger.record_evaluation(0, f"client {client}", {"accuracy": 0.5})
            ledger.record_evaluation(6, f"client {client}", {"accuracy": 0.6 + client / 10})
    page = write([folder], tmp_path / "report.html")
    figure = page.figure("Accuracy by client")
    assert trace(figure, ("early", "markers"), "hiso") == ([0, 1, 2, 3], [0.5] * 4)
    assert trace(figure, ("late", "markers"), "hiso") == ([0, 1, 2, 3], [0.6, 0.7, 0.8, 0.9])
    assert "Loss by client" not in [f["title"] for f in page.figures]


def test_replies_that_were_set_aside_are_told(copy, tmp_path):
    folder = copy("hiso-0")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        first = next(ledger.replies())
        with ledger._write() as db:
            db.execute(
                "UPDATE replies SET set_aside = 'digest' WHERE round = 0 AND client = ?",
                (first.client,),
            )
    page = write([folder], tmp_path / "report.html")
    view = page.figure("Participation")["views"]["hiso"]["data"]
    assert view["y"][1] == [int(client == first.client) for client in range(4)]
    sizes = page.figure("Size of the scalars")["data"][-1]
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        (other,) = (r for r in ledger.replies() if r.round == 0 and r.set_aside is None)
    size = float(np.sqrt((other.scalars.astype(np.float64) ** 2).mean()))
    assert sizes["y"][0] == pytest.approx(size, rel=1e-5)


def test_faults_and_quarantine_are_told(page, copy, tmp_path):
    header = ("run", "client", "invalid", "silent")
    assert not any(table[0][:4] == list(header) for table in page.tables)
    folder = copy("hiso-0")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        end = ledger.position
        for attempt in range(FAULTS):
            kind = "silent" if attempt else "invalid"
            faults = {2: kind} | ({1: "digest"} if attempt == 0 else {})
            ledger.abort(end, attempt, "nobody agreed", [], up=0, down=0, faults=faults)
    told = write([folder], tmp_path / "report.html").rows(*header)
    common = {"run": "hiso", "cut": "0"}
    span = {"not asked since round": str(end + 1), "asked again in round": str(end + 1 + WINDOW)}
    assert told == [
        common
        | {"client": "1", "invalid": "0", "silent": "0", "wrong digest": "1"}
        | dict.fromkeys(span, "–"),
        common
        | {"client": "2", "invalid": "1", "silent": str(FAULTS - 1), "wrong digest": "0"}
        | span,
    ]


def test_tables_tell_results_and_costs(page, runs):
    summary = json.loads((runs["zo"] / "summary.json").read_text())
    results = {row["group"]: row for row in page.rows("group", "test accuracy before")}
    zo = results["zo_sgd, lr 0.01"]
    assert float(zo["test accuracy after"]) == pytest.approx(summary["accuracy_after"], abs=1e-4)
    assert float(zo["test loss before"]) == pytest.approx(summary["loss_before"], rel=1e-3)
    assert results["hiso, lr 0.02"]["test accuracy after"] == "–"
    assert results["hiso, lr 0.01"]["seeds"] == "0, 1"
    costs = {row["group"]: row for row in page.rows("group", "rounds", "bytes up")}
    assert costs["zo_sgd, lr 0.01"]["bytes up"] == f"{summary['bytes_up']} B"
    assert costs["zo_sgd, lr 0.01"]["the papers' count"] == f"{summary['paper_bytes']} B"
    assert costs["zo_sgd, lr 0.01"]["FedAvg's bytes"] == "4.2 MB"  # 2 · 12 replies · 44,192 · 4
    assert costs["zo_sgd, lr 0.01"]["forward passes"] == "36"
    assert costs["fedavg, lr 0.01"]["forward passes"] == "36"


def test_settings_show_what_differs_and_all_on_demand(page):
    differ = page.rows("group", "method")
    assert set(differ[0]) == {
        "group",
        "method",
        "lr",
        "nu",
        "eps",
        "floor",
        "partition",
        "alpha",
    }
    every = page.rows("setting")
    assert {row["setting"]: row["zo_sgd, lr 0.01"] for row in every}["batch_size"] == "4"
    assert page.tags.count(("details", {})) == 2


def test_a_change_on_the_way_is_told(copy, tmp_path):
    folder = copy("hiso-0")
    simulate(out=folder, change={"lr": 0.005, "rounds": 7})
    (lr, rounds) = write([folder], tmp_path / "report.html").rows("run", "from round", "setting")
    assert list(lr.values()) == ["hiso", "6", "lr", "0.01", "0.005"]
    assert list(rounds.values()) == ["hiso", "6", "rounds", "6", "7"]


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    paths = [runs["hiso-0"], runs["bare"]]
    texts = []
    for name in ("a", "b"):
        write(paths, tmp_path / name)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


def test_it_names_nothing_to_be_fetched(page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or (tag == "a" and value.startswith("#")), (tag, name, value)
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed")]


def test_names_cannot_break_out_of_the_page(runs, tmp_path):
    evil = "</script><script>alert(1)</script> & \"'"
    page = write([runs["zo"]], tmp_path / "report.html", labels={runs["zo"]: evil}, title=evil)
    assert page.titles[0] == evil
    assert page.rows("group", "test accuracy before")[0]["group"] == evil
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert evil in page.figure("Participation")["views"]


def test_labels_and_extra_sections_are_the_callers(runs, tmp_path):
    labels = {runs["hiso-0"]: "ours", runs["zo"]: "theirs"}
    bars = Figure(
        "Rounds to 0.8",
        [
            {"type": "bar", "x": [name], "legendgroup": name, "marker": {"color": style["color"]}}
            for name, style in zip(("ours", "theirs"), map(line_style, range(2)), strict=True)
        ],
        {"yaxis": {"title": {"text": "rounds"}}},
        {
            "SST-2": View({"y": [[120], [180]]}),
            "QQP": View({"y": [[60], [90]]}, {"yaxis.title.text": "rounds, QQP"}),
        },
        log="y",
    )
    table = Table(["method", "rounds"], [["ours", 120], ["theirs", None]], "To a target")
    extra = Section("Targets", [table, bars], "Text & more.", ["SST-2", "QQP"], "task")
    page = write(list(labels), tmp_path / "report.html", labels=labels, extra=[extra])
    assert page.titles[:4] == ["Runs", "Results", "Targets", "Curves"]
    assert page.rows("method", "rounds") == [
        {"method": "ours", "rounds": "120"},
        {"method": "theirs", "rounds": "–"},
    ]
    assert page.figures[0]["views"]["QQP"]["data"]["y"] == [[60], [90]]
    assert "theirs" in [a["data-group"] for tag, a in page.tags if "data-group" in a]
    assert ("input", {"type": "radio", "name": "choice2", "value": "QQP"}) in page.tags


def test_what_cannot_be_written_is_a_wrong_setting(runs, tmp_path):
    with pytest.raises(SettingsError, match="cannot write the report to"):
        write([runs["bare"]], tmp_path / "missing" / "report.html")
    with pytest.raises(ProtocolError, match="holds no run"):
        write([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_missing_extra_is_told(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)  # as if it were not installed
    with pytest.raises(LoadError, match=r"needs plotly: pip install 'hiso\[report\]'"):
        write_report([runs["bare"]], tmp_path / "report.html", title="")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{hiso-0}", "{bare}"], 0, "out.html: 2 runs in 2 groups, 4.9 MB"),
        ([], 2, "Missing argument"),
        (["{zo}", "{zo}"], 2, "named twice"),
        (["nowhere"], 6, "nowhere holds no run"),
        (["{zo}", "--out", "no/where.html"], 2, "cannot write the report to no/where.html"),
    ],
)
def test_the_command(hiso, runs, arguments, code, words):
    names = [argument.format(**runs) for argument in arguments]
    done = hiso("report", "--out", "out.html", *names)
    assert done.code == code, done.err
    assert words in " ".join((done.out + done.err).replace("│", " ").split())
    assert "Traceback" not in done.err
    if code == 0:
        assert Page((hiso.folder / "out.html").read_text()).titles[0] == "hiso: hiso-0, bare"
        told = hiso("report", *names, "--out", "out.html", "--title", "T & U", "--json").json
        assert told["groups"] == {"hiso": 1, "fedavg": 1}
        text = (hiso.folder / "out.html").read_text()
        assert (told["report"], told["bytes"]) == ("out.html", len(text.encode()))
        assert Page(text).titles[0] == "T & U"


def test_a_run_that_has_just_begun(copy, tmp_path):
    folder = copy("hiso-0")
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        ledger.rollback(0)
    page = write([folder], tmp_path / "report.html")
    assert page.titles[1:] == ["Results", "Curves", "Costs", "Learned diagonal h", "Settings"]
    assert trace(page.figure("Loss"), ("hiso, tuning", "lines"), "Rounds")[0] == [0]
    (row,) = page.rows("group", "rounds", "bytes up")
    assert row["rounds"] == "0"
    assert row["seconds a round"] == "–"
