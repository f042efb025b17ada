"""Tasks of one's own as a table of settings, whole or made from the columns of a file."""

from __future__ import annotations

import json
import tomllib

import pytest

from hiso.core.record import Record
from hiso.errors import LoadError, RunConflict, SettingsError
from hiso.flower.envelope import Envelope
from hiso.flower.rounds import Pace
from hiso.flower.server_app import check
from hiso.flower.worker import Worker
from hiso.lab.baselines.baseline_settings import parse_baseline
from hiso.lab.compare.spec import checked, read_comparison
from hiso.ring.ledger.ledger import Ledger
from hiso.run.api import evaluate_run, simulate
from hiso.run.opened import open_run
from hiso.run.settings import parse_settings
from hiso.run.track import Tracker
from hiso.workloads.text.task import Task

from ..process import flags

WORDS = {"good": ["great", "fine"], "bad": ["long", "dull"], "terrible": ["awful", "slow"]}
COLUMNS = {"text_column": "text", "label_column": "stars"}
WHOLE = {
    "template": "{title}: {text}\nIt was",
    "label_column": "stars",
    "labels": {"good": "very good", "bad": "very bad", "terrible": "terrible"},
    "shared": ["title"],
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def own(tmp_path, base):
    """Settings of a run on a file of three classes, without a task."""
    path = tmp_path / "own.csv"
    lines = ["title,text,stars"]
    for i in range(90):
        label = list(WORDS)[i % 3]
        lines.append(f"t{i // 6},film {i} was {WORDS[label][i // 3 % 2]},{label}")
    path.write_text("\n".join(lines) + "\n")
    return base | {"data": str(path), "max_length": 40, "rounds": 4, "eval_every": 2}


def records(folder) -> list[Record]:
    with Ledger.read(folder / "ledger.sqlite") as ledger:
        return ledger.records()


def test_two_columns_make_a_task(tmp_path, own, hiso):
    """What is printed is the table that makes the same run, and the folder knows it."""
    own["model"] = str(own["model"])
    command = ("run", *flags(own), "--text-column", "text", "--label-column", "stars")
    done = hiso(*command, "--out", "run")
    assert done.code == 0, done.err
    printed = done.err[done.err.index("[task_definition]") : done.err.index("position ")]
    assert printed.count("# 30 rows") == 3
    table = tomllib.loads(printed)["task_definition"]
    assert table == COLUMNS | {
        "template": "{text}\nStars:",
        "labels": {word: word for word in WORDS},
    }
    run = open_run(tmp_path / "run")
    assert run.settings["task"] == "own"
    assert run.settings["task_definition"].items() >= table.items()
    by_hand = simulate(out=tmp_path / "by hand", task_definition=table, **own)
    assert by_hand["chain"] == run.summary["chain"]

    again = hiso(*command, "--out", "run", "--change", "rounds=5", "--json")
    assert again.code == 0, again.err
    assert hiso("run", "--out", "run", "--resume", "--json").json == again.json
    assert hiso("eval", "run", "--json").json["digest"] == again.json["digest"]
    other = hiso("run", "--out", "run", "--text-column", "title")
    assert other.code == 3
    assert "task_definition.text_column: 'text' in the run, 'title' asked for" in other.err
    assert "labels" not in other.err


def test_what_is_given_goes_before_what_is_made(tmp_path, own, hiso):
    file = tmp_path / "own.toml"
    file.write_text(
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in own.items())
        + 'task = "films"\n[task_definition]\ntemplate = "So {text}, it was"\n'
    )
    done = hiso("run", "own.toml", "--label-column", "stars", "--out", "run", "--json")
    assert done.code == 0, done.err
    assert done.json["settings"]["task"] == "films"
    table = done.json["settings"]["task_definition"]
    assert table["template"] == "So {text}, it was"
    assert set(table["labels"]) == set(WORDS)


def test_a_table_is_the_task_object_that_it_describes(tmp_path, own):
    """Their runs differ in the identity alone, where a table also tells its classes."""
    table = simulate(out=tmp_path / "table", task="films", task_definition=WHOLE, **own)
    task = Task(
        name="films",
        template=WHOLE["template"],
        labels=(" very bad", " very good", " terrible"),
        classes=("bad", "good", "terrible"),
        label_column="stars",
        shared=("title",),
    )
    simulate(out=tmp_path / "object", task=task, **own)
    assert [r.to_bytes() for r in records(tmp_path / "table")] == [
        r.to_bytes() for r in records(tmp_path / "object")
    ]
    with Ledger.read(tmp_path / "table" / "ledger.sqlite") as ledger:
        told = ledger.facts["task"]
    assert told["classes"] == ["bad", "good", "terrible"]
    assert told["labels"] == list(task.labels)
    assert evaluate_run(tmp_path / "table")["digest"] == table["digest"]


def test_a_worker_has_it_from_the_settings(tmp_path, own):
    """Sites whose values mean other numbers do not fall in; without words there is no worker."""
    swapped = WHOLE["labels"] | {"good": "very bad", "bad": "very good"}

    def identity(table) -> dict:
        settings = parse_settings(own | {"task_definition": table})
        worker = Worker(settings, tmp_path, own=(0,), alive=lambda: None)
        answer = worker.handle(Envelope("hello", {}), [0])
        return json.loads(answer.facts["identity"])["task"]

    assert identity(WHOLE) == identity({**WHOLE}) != identity(WHOLE | {"labels": swapped})
    with pytest.raises(SettingsError, match="settings of every participant"):
        identity(COLUMNS)


def test_values_that_the_table_lacks_are_named_with_their_lines(tmp_path, own):
    """A number is no place in the table, and a label word no value."""
    rows = "".join(f"t{i},film {i},{v}\n" for i, v in enumerate(["good", "1", "very good", "Bad"]))
    (tmp_path / "odd.csv").write_text(f"title,text,stars\n{rows}")
    settings = own | {"data": str(tmp_path / "odd.csv")}
    with pytest.raises(LoadError, match=r"2 problems(.|\n)*line 3: label '1' is none of bad, good"):
        simulate(out=tmp_path / "run", task_definition=WHOLE, **settings)


def test_trackers_and_servers_take_it(tmp_path, own):
    out = tmp_path / "run"
    with Tracker("tensorboard", out) as tracker:
        simulate(out=out, task_definition=WHOLE, observer=tracker, **own)
    assert list((out / "track").rglob("events.*"))
    pace = Pace(600, 4)
    check(parse_settings(own | {"task_definition": WHOLE}), pace)
    with pytest.raises(SettingsError, match="has no labels"):
        check(parse_settings(own | {"task_definition": COLUMNS}), pace)


def test_free_text_and_answers(tmp_path, own):
    text = simulate(out=tmp_path / "text", task_definition={"text_column": "text"}, **own)
    assert set(text["metrics_after"]) == {"loss", "perplexity"}
    table = {
        "template": "{text}\nStars:",
        "answers": ["stars"],
        "answer_tokens": 5,
        "metrics": ["exact_match", "rouge1"],
    }
    told = simulate(out=tmp_path / "answers", task_definition=table, **own)["metrics_after"]
    assert set(told) == {"loss", "exact_match", "rouge1"}
    assert evaluate_run(tmp_path / "answers")["exact_match"] == told["exact_match"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"label_column": "stars"}, "give text_column"),
        (COLUMNS | {"labels": {"good": "good"}}, "at least 2"),
        (COLUMNS | {"labels": {"a": "x", "b": " x"}}, "all different"),
        (COLUMNS | {"labels": {"a": "x", "b": " "}}, "a label word is empty"),
        (COLUMNS | {"labels": {"a": "x", "A ": "y"}}, "but for case"),
        ({"text_column": "text", "labels": {"a": "x", "b": "y"}}, "labels needs label_column"),
        (COLUMNS | {"answers": ["stars"]}, "exclude each other"),
        ({"text_column": "text", "answers": ["stars"]}, "needs answer_tokens"),
        ({"text_column": "text", "answer_tokens": 3}, "answer_tokens needs answers"),
        (COLUMNS | {"metrics": ["f1"]}, "metrics is for answers"),
        ({"template": "a { b"}, "double a brace"),
        ({"template": "a {} b"}, "name a column"),
        ({"template": "{a.b}"}, "rename the column"),
        ({"text_column": "a:b"}, "rename it"),
        ({"template": "{text} "}, "ends in white space"),
        (COLUMNS | {"shared": ["title"]}, "must be among its columns"),
        (COLUMNS | {"lables": {}}, "did you mean 'labels'"),
        (3, "task_definition = 3"),
    ],
)
def test_a_table_that_makes_no_task_is_refused(table, words):
    with pytest.raises(SettingsError, match=words):
        parse_settings({"task_definition": table})


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"task": "sst2"}, SettingsError, "exclude each other"),
        ({"task": "digits", "model": "mlp"}, SettingsError, "give your own task another name"),
        ({"data": None}, SettingsError, "takes them from a file"),
        ({"data": [{"text": "a", "stars": "b"}]}, SettingsError, "takes them from a file"),
        ({"data": "nowhere.csv"}, LoadError, "is none"),
    ],
)
def test_what_does_not_go_with_it_leaves_no_folder(tmp_path, own, more, error, words):
    with pytest.raises(error, match=words):
        simulate(out=tmp_path / "run", task_definition=COLUMNS, **own | more)
    assert not (tmp_path / "run").exists()


def test_another_table_is_another_run(tmp_path, own):
    simulate(out=tmp_path / "run", task_definition=WHOLE, **own)
    for change in ({"template": "{title}, {text}"}, {"shared": []}):
        with pytest.raises(RunConflict) as caught:
            simulate(out=tmp_path / "run", task_definition=change)
        assert list(caught.value.settings) == [f"task_definition.{next(iter(change))}"]


def test_a_comparison_may_define_its_task(tmp_path):
    head = 'title = "own"\nmetric = "f1"\n'
    tail = (
        '[[methods]]\nlabel = "a"\nmethod = "hiso"\n[[methods]]\nlabel = "b"\nmethod = "fedavg"\n'
    )
    columns = '[settings.task_definition]\ntext_column = "text"\nlabel_column = "stars"\n'
    words = '[settings.task_definition.labels]\ngood = "good"\nbad = "bad"\n'
    file = tmp_path / "own.toml"
    file.write_text(head + columns + words + tail)
    assert len(read_comparison(file).methods) == 2
    file.write_text(head + columns + tail)
    with pytest.raises(SettingsError, match="has no labels"):
        read_comparison(file)


def test_runs_without_one_are_what_they_were_before():
    """What comparisons name folders by, and baselines compare settings by."""
    assert "task_definition" not in checked({}) | checked({"method": "fedavg"})
    assert "task_definition" not in parse_baseline({}).facts()
    table = {**COLUMNS, "labels": {"good": "a", "bad": "b"}}
    assert parse_baseline({"task_definition": table}).facts()["task_definition"]["labels"]
