"""What is read from folders, against what the ledger says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hiso.errors import ProtocolError, SettingsError
from hiso.report.gather import read_runs
from hiso.report.groups import group_runs
from hiso.report.tables import costs_section, results_section
from hiso.ring.ledger.ledger import Ledger

from .conftest import PASSES


def read(path):
    (run,) = read_runs([path])
    return run


def test_a_run_is_what_its_ledger_says(runs):
    run = read(runs["hiso-0"])
    with Ledger.open(runs["hiso-0"] / "ledger.sqlite") as ledger:
        rows, evaluations = ledger.rounds(), ledger.evaluations()
        assert run.traffic == ledger.traffic()
        assert run.settings == ledger.settings
        assert [r.to_bytes() for r in run.log.records] == [r.to_bytes() for r in ledger.records()]
    assert run.loss.tolist() == [row.loss for row in rows]
    assert run.clients == [row.clients for row in rows]
    assert run.evaluations == evaluations
    spent = [sum(row.bytes_up + row.bytes_down for row in rows[:n]) for n in range(len(rows) + 1)]
    assert run.spent["bytes"].tolist() == spent
    assert run.spent["rounds"].tolist() == list(range(7))
    assert run.spent["passes"].tolist() == [2 * (2 + 1) * n for n in range(7)]
    assert sum(run.traffic) == spent[-1]


def test_replies_are_what_led_to_the_records(runs):
    """With shared directions a coefficient is the mean scalar over clients, divided by P."""
    log = read(runs["hiso-0"]).log
    for record in log.records:
        replies = [reply for reply in log.replies if reply.round == record.round]
        assert [reply.set_aside for reply in replies] == [None, None]
        mean = np.mean([reply.scalars.astype(np.float64) for reply in replies], axis=0)
        np.testing.assert_allclose(mean.ravel() / 2, record.coefficient, rtol=1e-6)


def test_two_files_say_the_same_as_a_ledger(runs, copy):
    whole = read(runs["hiso-0"])
    folder = copy("hiso-0")
    for file in folder.glob("ledger.sqlite*"):
        file.unlink()
    bare = read(folder)
    assert bare.log is None
    assert bare.loss.tolist() == whole.loss.tolist()
    assert bare.seconds.tolist() == whole.seconds.tolist()
    for kind in ("rounds", "bytes"):
        assert bare.spent[kind].tolist() == whole.spent[kind].tolist()
    for name in ("traffic", "clients", "evaluations", "settings", "summary"):
        assert getattr(bare, name) == getattr(whole, name)


def test_a_ledger_needs_no_other_file(runs, copy):
    folder = copy("hiso-0")
    (folder / "metrics.jsonl").unlink()
    (folder / "summary.json").unlink()
    assert read(folder).loss.tolist() == read(runs["hiso-0"]).loss.tolist()


def test_passes_are_read_where_every_round_tells_them(runs, copy):
    assert read(runs["bare"]).spent["passes"].tolist() == [PASSES * n for n in range(7)]
    folder = copy("bare")
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    del next(line for line in lines if line["kind"] == "round")["passes"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "passes" not in read(folder).spent


def test_a_run_that_goes_on_has_figures(runs):
    run = read(runs["unfinished"])
    assert (run.rounds, run.summary) == (3, None)
    (group,) = group_runs([run])
    (table,) = costs_section([group]).parts
    cells = dict(zip(table.header, table.rows[0], strict=True))
    assert cells["rounds"] == 3
    assert cells["the papers' count"] == "48 B"  # 2 · 3 rounds · 1 step · 2 directions · 4
    assert cells["bytes up"] == "48 B"  # 3 rounds · 2 clients · 2 directions · 4
    assert cells["FedAvg's bytes"] is None
    assert cells["seconds a round"] > 0
    assert "unfinished (3 of 6 rounds)" in results_section([group]).text


def test_a_summary_of_an_earlier_end_is_not_believed(copy):
    folder = copy("hiso-0")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"rounds": 5}))
    assert read(folder).summary is None


def test_the_last_line_may_be_half_written(copy):
    folder = copy("bare")
    text = (folder / "metrics.jsonl").read_text()
    cut = text[: text.rindex("{") + 20]
    (folder / "metrics.jsonl").write_text(cut)
    assert len(read(folder).evaluations) == text.count('"evaluation"') - 1


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace("{", "(", 1), "line 1 is not JSON"),
        (lambda text: text.replace('"round": 2', '"round": 4', 1), "do not ascend"),
        (lambda text: text.replace('"clients"', '"klients"', 1), "'clients'"),
        (lambda text: text.replace('"split"', '"spilt"', 1), "'split'"),
    ],
)
def test_damaged_metrics_are_refused(copy, spoil, words):
    path = copy("bare") / "metrics.jsonl"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ProtocolError, match=words):
        read(path.parent)


def test_a_damaged_ledger_is_refused(copy):
    folder = copy("hiso-0")
    with Ledger.open(folder / "ledger.sqlite") as ledger, ledger._write() as db:
        db.execute("UPDATE records SET bytes = x'00' WHERE round = 2")
    with pytest.raises(ProtocolError, match="damaged from round 2 on"):
        read(folder)


def test_all_folders_without_a_run_are_named(runs, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(ProtocolError) as caught:
        read_runs([runs["zo"], tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    for name in "abc":
        assert f"{tmp_path / name} holds no run" in str(caught.value)


def test_a_run_is_named_once(runs):
    with pytest.raises(SettingsError, match="named twice"):
        read_runs([runs["zo"], runs["zo"]])
    with pytest.raises(SettingsError, match="at least one"):
        read_runs([])
