"""A run that is watched: what is told, by whom it is read, and that nothing is disturbed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from hiso.errors import ProtocolError
from hiso.report.watch.words import Cell, client_table, fitting, sparkline
from hiso.ring.accept.quarantine import FAULTS, WINDOW
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Owner
from hiso.run.server_status import ReplyTime, ServerStatus, read_server_status, write_server_status
from hiso.run.watch import RECENT, STALE, watch_run

from ..ring.standin import new_ledger
from ..ring.test_ledger import commit
from ..terminal import NOWHERE, Terminal
from .test_browser import CHROMIUM, NAMES

HOSTILE = (
    "<script>alert(1)</script> [bold]x[/bold] {{ 7 * 7 }}\x1b[31m\nhiso_rounds_total 99\r\u202e"
)


@pytest.fixture
def troubled(tmp_path) -> Path:
    """A run folder of three clients: 1 is in quarantine, 2 has said something hostile."""
    folder = tmp_path / "troubled"
    folder.mkdir()
    with new_ledger(folder / "ledger.sqlite") as ledger:
        ledger.change({"clients": 3})
        ledger.own({0: Owner("SHA256:abc", "north")})
        for r in range(FAULTS + 1):
            commit(ledger, r)
            ledger.abort(r + 1, 0, "too few", [], up=0, down=0, faults={1: "silent"})
        ledger.record_evaluation(3, f"dev{HOSTILE}", {'acc"\n\\uracy': 0.75})
        ledger.refuse(2, 4, "as plain as can be")
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db, db:  # past `plain`
        db.execute("UPDATE refusals SET reason = ?", (HOSTILE,))
    return folder


def status(folder: Path, *, age: float = 0.0, doing: str = "rounds") -> None:
    replies = {0: ReplyTime(1.25, True, False), 2: ReplyTime(75.0, False, True)}
    made = ServerStatus(0, "rounds", [0, 2], [0], replies)
    write_server_status(folder, made)
    content = json.loads((folder / "status.json").read_text())
    content |= {"time": os.stat(folder / "status.json").st_mtime - age, "doing": doing}
    (folder / "status.json").write_text(json.dumps(content))


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_simulation_is_told_as_its_ledger_has_it(runs):
    before = contents(runs["hiso-0"])
    w = watch_run(runs["hiso-0"])
    assert contents(runs["hiso-0"]) == before
    with Ledger.read(runs["hiso-0"] / "ledger.sqlite") as ledger:
        rounds = ledger.rounds()
        assert (w.run, w.rounds, w.planned) == (ledger.run, 6, 6)
        assert w.losses == [row.loss for row in rounds]
        assert (w.bytes_up, w.bytes_down) == ledger.traffic()
        assert w.last_round_time == rounds[-1].time
    assert (w.finished, w.doing, w.seconds_left) == (True, None, 0)
    assert w.evaluation is not None
    assert (w.evaluation.position, w.evaluation.split) == (6, "test")
    assert [c.client for c in w.clients] == [0, 1, 2, 3]
    for c in w.clients:
        answered = [row.round for row in rounds if c.client in row.clients]
        assert c.last_round == max(answered, default=None)
        assert (c.here, c.reply, c.paused_until, c.trouble) == (None, None, None, None)


def test_a_run_that_was_interrupted_is_not_finished(runs):
    w = watch_run(runs["unfinished"])
    assert (w.finished, w.rounds, w.planned) == (False, 3, 6)
    assert w.seconds_per_round is not None
    assert w.seconds_left == 3 * w.seconds_per_round


def test_faults_quarantine_and_refusals_are_told(troubled):
    w = watch_run(troubled)
    by = {c.client: c for c in w.clients}
    assert (w.rounds, w.planned, w.aborted) == (FAULTS + 1, 30, 1)
    assert by[1].paused_until == FAULTS + 1 + WINDOW
    assert by[1].faults == {"silent": FAULTS + 1}
    assert by[1].trouble_round == FAULTS + 1
    assert (by[2].trouble_round, by[2].last_round) == (4, None)
    assert (by[0].site, by[1].site) == ("north", None)
    assert w.refusals == 1


def test_a_fresh_status_says_who_is_here(troubled):
    status(troubled)
    w = watch_run(troubled)
    assert (w.doing, w.asked) == ("rounds", [0, 2])
    assert [c.here for c in w.clients] == [True, False, False]
    assert [c.reply and c.reply.slow for c in w.clients] == [False, None, True]
    header, rows = client_table(w)
    assert header[0] == "client"
    assert [any(cell.wrong for cell in row) for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("age", "doing"), [(2 * STALE, "rounds"), (0, "nothing more"), (0, "something new")]
)
def test_a_status_of_the_past_says_nothing_of_the_present(troubled, age, doing):
    status(troubled, age=age, doing=doing)
    w = watch_run(troubled)
    assert w.doing is None
    assert all((c.here, c.reply) == (None, None) for c in w.clients)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_half_a_status_is_none(troubled, share):
    status(troubled)
    whole = (troubled / "status.json").read_bytes()
    (troubled / "status.json").write_bytes(whole[: int(share * len(whole))])
    assert read_server_status(troubled) is None
    assert watch_run(troubled).rounds == FAULTS + 1


def test_a_folder_that_is_just_being_made(tmp_path, hiso):
    folder = tmp_path / "new"
    with pytest.raises(ProtocolError):
        watch_run(folder)
    assert hiso("watch", folder).code == 6
    folder.mkdir()
    assert watch_run(folder).run is None
    status(folder, doing="waiting for clients")
    w = watch_run(folder)
    assert (w.doing, [c.client for c in w.clients]) == ("waiting for clients", [0])
    (folder / "ledger.sqlite").touch()
    assert watch_run(folder).run is None
    (folder / "ledger.sqlite").unlink()
    with new_ledger(folder / "ledger.sqlite"):
        w = watch_run(folder)
    assert (w.rounds, w.loss, w.losses, w.seconds_per_round) == (0, None, [], None)
    assert hiso("watch", folder).code == 0


def test_watching_disturbs_no_writer(tmp_path):
    """Neither the ledger, nor the lock, nor the folder: between all commits of an open writer."""
    with new_ledger(tmp_path / "ledger.sqlite") as ledger:
        for r in range(RECENT + 5):
            commit(ledger, r)
            before = {p.name for p in tmp_path.iterdir()}
            w = watch_run(tmp_path)
            assert {p.name for p in tmp_path.iterdir()} == before
            assert w.rounds == r + 1
        assert w.losses == [1 / 3] * RECENT
        assert w.clients[1].last_round == RECENT + 4


def test_a_table_or_json_where_there_is_no_terminal(hiso, troubled):
    status(troubled)
    done = hiso("watch", troubled)
    assert (done.code, done.err) == (0, "")
    assert re.search(rf"until .*\n.*round {FAULTS + 1 + WINDOW} ", done.out)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", done.out)
    told = hiso("watch", troubled, "--json").json
    assert told["clients"][2]["trouble"].startswith("<script>")
    assert "\x1b" not in told["clients"][2]["trouble"]
    assert hiso("watch", troubled, "--json", "--port", 0).code == 2


def test_a_terminal_is_shown_the_run_until_it_is_finished(hiso, runs, troubled, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(160)
    process = hiso.start("watch", runs["hiso-0"], terminal=terminal.name)
    terminal.read_until(process, NOWHERE)
    process.join()
    assert process.exitcode == 0, terminal.text
    assert "6 of 6" in terminal.plain()

    terminal = Terminal(160)
    process = hiso.start("watch", troubled, terminal=terminal.name)
    terminal.read_until(process, r"(?s)not finished.*not finished")  # the first, and a later one
    os.kill(process.pid, signal.SIGINT)
    terminal.read_until(process, NOWHERE)
    process.join()
    assert process.exitcode == 130, terminal.text
    text = terminal.plain()
    assert "<script>alert(1)</script> [bold]x[/bold]" in text
    assert "\\x1b[31m" in text
    assert "\x1b[31m" not in terminal.text


@contextmanager
def served(hiso, folder: Path):
    process = hiso.start("watch", folder, "--port", 0)
    out = hiso.folder / ".out"
    while process.is_alive() and not (
        out.exists() and (found := re.search(r"http://127\.0\.0\.1:\d+/", out.read_text()))
    ):
        process.join(0.01)
    try:
        yield found[0]
    finally:
        os.kill(process.pid, signal.SIGINT)
        done = hiso.end(process)
    assert (done.code, done.err) == (130, "")


def read(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urlopen(Request(url, headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and sorted labels."""
    return {
        (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics(hiso, troubled):
    status(troubled)
    with served(hiso, troubled) as url:
        code, text = read(url + "metrics")
        found = samples(text)
        assert code == 200
        assert found["hiso_rounds_total",] == FAULTS + 1
        assert found["hiso_rounds_planned",] == 30
        assert found["hiso_loss",] == 1 / 3
        up, down = (FAULTS + 1) * 8, 4 * sum(range(FAULTS + 1))
        assert found["hiso_scalar_bytes_total", "direction=up"] == up
        assert found["hiso_scalar_bytes_total", "direction=down"] == down
        assert [found["hiso_client_up", f"client={c}"] for c in range(3)] == [1, 0, 0]
        assert [found["hiso_client_quarantined", f"client={c}"] for c in range(3)] == [0, 1, 0]
        assert found["hiso_client_quarantine_until_round", "client=1"] == FAULTS + 1 + WINDOW
        assert found["hiso_client_faults_total", "client=1", "kind=silent"] == FAULTS + 1
        assert found["hiso_client_slow", "client=2"] == 1
        assert [key[0] for key, v in found.items() if v == 0.75] == ["hiso_evaluation"]
        assert "alert" not in re.sub(r"split=.*", "", text)  # no reason of a client is a label
        with Ledger.open(troubled / "ledger.sqlite") as ledger:
            commit(ledger, FAULTS + 1)
        assert samples(read(url + "metrics")[1])["hiso_rounds_total",] == FAULTS + 2


def test_what_a_server_refuses(hiso, troubled):
    with served(hiso, troubled) as url:
        assert read(url)[0] == 200
        assert read(url, Host="localhost:9")[0] == 200
        assert read(url, Host="evil.example:9")[0] == 403
        assert read(url + "ledger.sqlite")[0] == 404
        (troubled / "ledger.sqlite").write_bytes(b"<b>no database</b>" * 100)
        assert read(url + "metrics")[0] == 503
        code, page = read(url)
        assert (code, "ledger.sqlite" in page) == (503, True)
    assert hiso("watch", troubled).code == 6


def test_a_port_that_is_taken(hiso, troubled):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = hiso("watch", troubled, "--port", port)
    assert (done.code, str(port) in done.err) == (2, True)


@pytest.mark.skipif(
    CHROMIUM is None, reason=f"no browser ({', '.join(NAMES)}): apt-get install chromium"
)
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(hiso, troubled, width):
    """It says what the ledger has, runs no script, asks nobody else, and renews itself."""
    status(troubled)
    told, requests = [], []
    with served(hiso, troubled) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(300_000)
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(url)
        rows = page.locator(".clients tbody tr").all_text_contents()
        assert len(rows) == 3
        assert f"until round {FAULTS + 1 + WINDOW}" in rows[1]
        assert "<script>alert(1)</script> [bold]x[/bold] {{ 7 * 7 }}\\x1b[31m hiso_" in rows[2]
        assert page.locator("script").count() == 0
        assert page.locator(".facts td").first.bounding_box()["width"] > 100
        assert page.locator(".curve polyline").bounding_box()["width"] > 200
        assert page.locator(".wrong").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        with Ledger.open(troubled / "ledger.sqlite") as ledger:
            commit(ledger, FAULTS + 1)
            ledger.refuse(0, FAULTS + 1, "a reason that makes the page longer " * 20)
        page.locator("td", has_text=f"{FAULTS + 2} of 30").wait_for()
        assert told == []
        assert set(requests) == {url}
        browser.close()


def test_those_with_a_problem_come_first_where_there_is_no_room():
    good, bad = [Cell("1")], [Cell("2", wrong=True)]
    assert fitting([good, bad, good], 3) == ([good, bad, good], 0)
    assert fitting([good, bad, good], 2) == ([bad, good], 1)


@pytest.mark.parametrize(
    ("values", "line"), [([], ""), ([2.0], "▁"), ([1.0, 1.0], "▁▁"), ([0.0, 7.0, 3.0], "▁█▄")]
)
def test_sparkline(values, line):
    assert sparkline(values) == line
