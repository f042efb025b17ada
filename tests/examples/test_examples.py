"""The examples run, and what they show is true."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> str:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_every_example_has_a_test():
    tested = set(re.findall(r'run\("(\w+\.py)"\)', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested
    settings = {path.name for path in EXAMPLES.glob("*.toml")}
    assert settings == {"demo.toml", "own_task.toml"}  # the first is `make demo`


def test_own_method(run):
    pairs = re.findall(r"(\w+) +([\d.]+) -> ([\d.]+)", run("own_method.py"))
    assert [name for name, _, _ in pairs] == ["lion", "hiso"]
    assert all(float(after) < 0.8 * float(before) for _, before, after in pairs)


def test_late_joiner_and_again(run):
    first, again = run("late_joiner.py"), run("late_joiner.py")
    assert first.count("round ") == 5
    assert again.count("round ") == 0
    trained, late, half = re.findall(r"[0-9a-f]{16}", first)
    assert trained == late != half
    assert re.findall(r"[0-9a-f]{16}", again) == [trained, late, half]


def test_own_loop(run):
    out = run("own_loop.py")
    assert "1 digest among 4 clients" in out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", out)]
    assert losses[-1] < losses[0]


def test_own_model(run, tmp_path):
    out = run("own_model.py")
    before, after = re.findall(r"accuracy ([\d.]+) -> ([\d.]+)", out)[0]
    assert float(after) > float(before)
    assert (tmp_path / "runs" / "own" / "ledger.sqlite").is_file()
    assert run("own_model.py") == out


def test_own_task(tmp_path, tiny_model, hiso):
    """With a tiny model; the file names its data from the root of the repository."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    more = ("--model", tiny_model, "--rounds", 2, "--max-length", 60, "--json")
    done = hiso("run", "examples/own_task.toml", *more)
    assert done.code == 0, done.err
    table = done.json["settings"]["task_definition"]
    assert (done.json["settings"]["task"], set(table["labels"])) == (
        "teams",
        {"billing", "delivery", "technical"},
    )
    assert done.json["rounds"] == 2
    assert hiso("eval", "runs/teams", "--json").json["digest"] == done.json["digest"]
