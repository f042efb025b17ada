"""Runs of tasks whose answers are written."""

from __future__ import annotations

import json
import re

import pytest
from rich.console import Console

from hiso import simulate
from hiso.cli.display import Watcher
from hiso.errors import SettingsError
from hiso.run.launch import evaluate_run

from ..process import flags

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def questions(tmp_path, base):
    """Settings of a run on questions that all have the same answer."""
    rows = [
        {"context": f"The film number {i} was long.", "question": "How was it?"}
        | {"answers": ["very good", "good"]}
        for i in range(60)
    ]
    data = write(tmp_path / "questions.jsonl", rows)
    return base | {"task": "squad", "data": data, "max_length": 72}


def test_a_model_learns_to_write_the_answer(tmp_path, questions):
    out = tmp_path / "run"
    learning = {"method": "zo_sgd", "lr": 3e-3, "directions": 10, "rounds": 60, "eval_every": 30}
    s = simulate(out=out, **questions | learning)
    assert s["accuracy_before"] is s["accuracy_after"] is None
    before, after = s["metrics_before"], s["metrics_after"]
    assert before.keys() == after.keys() == {"loss", "f1", "exact_match"}
    assert (before["f1"], before["exact_match"]) == (0, 0)
    assert (after["f1"], after["exact_match"]) == (1, 1)
    assert after["loss"] == s["loss_after"] < 0.3 * before["loss"]
    again = evaluate_run(out)
    assert again["digest"] == s["digest"]
    assert {name: again[name] for name in after} == after
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    dev = [line["f1"] for line in lines if line["kind"] == "evaluation" and line["split"] == "dev"]
    assert (len(dev), dev[0], dev[-1]) == (3, 0, 1)


def test_the_command_line_runs_resumes_evaluates_and_shows_it(questions, hiso):
    done = hiso("run", *flags(questions | {"rounds": 3}), "--out", "run", "--json")
    assert done.code == 0, done.err
    assert done.err == ""
    longer = hiso("run", "--out", "run", "--resume", "--change", "rounds=4")
    assert longer.code == 0, longer.err
    first = next(line for line in longer.out.splitlines() if "before → after" in line)
    assert "test f1, before → after" in first
    summary = json.loads((hiso.folder / "run" / "summary.json").read_text())
    assert summary["rounds"] == 4
    assert summary["metrics_before"] == done.json["metrics_before"]
    result = hiso("eval", "run", "--json").json
    assert result["digest"] == summary["digest"]
    assert {name: result[name] for name in ("loss", "f1", "exact_match")} == summary[
        "metrics_after"
    ]
    table = hiso("inspect", "run")
    assert table.code == 0, table.err
    lines = table.out.splitlines()
    header = next(line for line in lines if "position" in line and "split" in line)
    assert header.split("┃")[-2].strip() == "f1"
    straight = hiso("run", *flags(questions | {"rounds": 4}), "--out", "other", "--json").json
    assert straight["digest"] == summary["digest"]


@pytest.mark.parametrize("task", ["squad", "text"])
def test_lean_memory_gives_the_same_run(tmp_path, questions, task):
    """Also where the loss is over the whole vocabulary, and the head is empty between calls."""
    if task == "text":
        rows = [{"text": f"The film {i} was very good."} for i in range(40)]
        questions |= {"task": "text", "data": write(tmp_path / "text.jsonl", rows)}
    full, lean = (
        simulate(out=tmp_path / memory, **questions | {"memory": memory, "rounds": 2})
        for memory in ("full", "lean")
    )
    for same in ("digest", "chain", "metrics_before", "metrics_after"):
        assert lean[same] == full[same]


OTHERS = {
    "drop": {"passage": "The fox has {i} lazy dogs.", "question": "How many?", "answer": "{i}"},
    "xsum": {"document": "The film was very good and very long. {i}", "summary": "A film {i}."},
    "text": {"text": "The film {i} was very good and the plot {i}."},
    "sst2": {"sentence": "film {i} was very good", "label": "1"},
}
SHOWN = {"drop": r"f1 0\.0%", "xsum": r"R-L \d+\.\d%", "text": r"ppl [\d.e+]+", "sst2": "acc "}


@pytest.mark.parametrize("task", OTHERS)
def test_the_tasks_first_metric_is_shown(tmp_path, base, task):
    """In 80 columns, while it runs; of a task with labels it is the accuracy, as ever."""
    rows = [{k: v.format(i=i) for k, v in OTHERS[task].items()} for i in range(40)]
    data = write(tmp_path / "rows.jsonl", rows)
    file = (tmp_path / "shown").open("w+")
    console = Console(width=80, force_terminal=True, file=file)
    settings = base | {"task": task, "data": data, "rounds": 3, "max_length": 100}
    with Watcher(console) as watcher:
        summary = simulate(out=tmp_path / "run", observer=watcher, **settings)
    file.seek(0)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.read())
    file.close()
    lines = [line for line in re.split(r"[\r\n]+", text) if line.startswith("rounds")]
    assert any(re.search(rf"loss \S+ · {SHOWN[task]}\S* · ", line) for line in lines), text
    assert max(map(len, lines)) <= 80
    assert evaluate_run(tmp_path / "run")["digest"] == summary["digest"]


def test_what_answers_do_not_allow_is_refused(tmp_path, questions, hiso):
    with pytest.raises(SettingsError, match="no labels to divide by"):
        simulate(out=tmp_path / "run", **questions | {"partition": "dirichlet"})
    with pytest.raises(SettingsError, match="max_length 34 leaves no room"):
        simulate(out=tmp_path / "run", **questions | {"max_length": 34})
    path = write(tmp_path / "bad.jsonl", [{"context": "c", "question": "q", "answer": ""}] * 3)
    done = hiso("run", *flags(questions | {"data": path}), "--out", "run")
    assert done.code == 5
    assert "line 3: no answer" in done.err
    assert not (tmp_path / "run").exists()
