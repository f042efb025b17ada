"""The command line: exit codes, JSON, help, and what a terminal shows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hiso.cli.options import parse_change
from hiso.errors import SettingsError
from hiso.run.settings import Settings, parse_settings

from ..process import Hiso, flags
from ..terminal import NOWHERE, Terminal


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, reviews):
    """A folder in which `hiso run settings.toml` has run."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "settings.toml").write_text(
        f'model = "{tiny_model}"\ndata = "{reviews}"\nlr = 0.01\nclients = 4\nrounds = 4\n'
        "directions = 2\nbatch_size = 4\nmax_length = 24\neval_every = 2\n"
    )
    done = Hiso(folder)("run", "settings.toml")
    assert done.code == 0, done.err
    (folder / "stdout").write_text(done.out)
    (folder / "stderr").write_text(done.err)
    return folder


NAME = "runs/model-rotten_tomatoes-subspace_newton-0"


def test_where_there_is_no_terminal_it_is_quiet(run):
    out, err = (run / "stdout").read_text(), (run / "stderr").read_text()
    assert [re.sub(r"\s.*", "", line) for line in err.splitlines()] == ["position"] * 5
    assert "\x1b" not in out + err
    for word in ("test accuracy", "bytes up", "bytes down", "digest", NAME):
        assert word in out


def test_the_folder_is_named_after_the_run(run, hiso, base):
    assert (run / NAME / "summary.json").exists()
    missing = base | {"model": "/no/such/Qwen2.5-0.5B", "seed": 3}
    assert hiso("run", *flags(missing)).code == 5
    assert not (hiso.folder / "runs").exists()


def test_every_command_has_json(run):
    hiso = Hiso(run)
    summary = hiso("run", "settings.toml", "--json")
    assert summary.err == ""
    assert summary.json["folder"] == NAME
    result = hiso("eval", NAME, "--json")
    assert result.err == ""
    assert result.json["digest"] == summary.json["digest"]
    assert result.json["accuracy"] == summary.json["accuracy_after"]
    assert hiso("eval", NAME, "--position", 2, "--split", "dev", "--json").json["position"] == 2
    told = hiso("inspect", NAME, "--json")
    assert told.err == ""
    assert told.json["facts"]["digest"] == summary.json["digest"]
    assert len(told.json["rounds"]) == 4


def test_the_doctor(run):
    done = Hiso(run)("doctor", "--json")
    assert done.code == 0
    assert done.json["healthy"] is True
    assert set(done.json["backends agree"].values()) == {True}
    assert all(speed > 0 for speed in done.json["speed"].values())
    assert done.err == ""


def test_people_can_read_it(run):
    hiso = Hiso(run)
    for command, words in {
        ("inspect", NAME): ["settings", "last rounds", "lr", "0.01", "chain"],
        ("eval", NAME): ["accuracy", "digest"],
    }.items():
        done = hiso(*command)
        assert done.code == 0, done.err
        assert all(word in done.out for word in words)


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("run --sample 9", 2, "sample = 9 must lie in"),
        ("run --method hizo", 2, "did you mean 'hizoo'"),
        ("run --rounds many", 2, "--rounds"),
        ("run --learning-rate 1", 2, "No such option"),
        ("run nothing.toml", 2, "cannot read settings from nothing.toml"),
        ("run broken.toml", 2, "cannot read settings from broken.toml"),
        ("run wrong.toml", 2, "lrr: unknown key (did you mean 'lr'?)"),
        ("run wrong.toml", 2, "rounds = 0"),
        ("run wrong.toml", 2, "colour: unknown key"),
        ("run --change lr", 2, "write it as KEY=VALUE"),
        ("run --resume --out new", 2, "new holds no run"),
        ("run --out new --change lr=1", 3, "new holds no run yet"),
        (f"run --out {NAME} --seed 5", 3, "seed: 0 in the run, 5 asked for"),
        (f"run --out {NAME} --change seed=5", 3, "seed cannot change"),
        (f"run --out {NAME} --change lrr=5", 2, "did you mean 'lr'"),
        ("run --model ./missing --out new", 5, "missing"),
        ("run --task sst --out new", 5, "Did you mean sst2"),
        ("run --data missing.csv --out new", 5, "missing.csv"),
        (f"run --out {NAME} --rollback 9", 6, "cannot roll back to position 9"),
        ("eval nowhere", 6, "there is no ledger at nowhere/ledger.sqlite"),
        ("inspect nowhere", 6, "start a run there first"),
        ("inspect .", 6, "there is no ledger"),
        ("inspect empty", 6, "is not a ledger"),
        (f"eval {NAME} --position 9", 6, "the log has positions 0..4, not 9"),
        (f"eval {NAME} --split train", 2, "must be test, dev, or"),
        ("dance", 2, "No such command"),
    ],
)
def test_errors_have_their_exit_codes(run, command, code, words):
    (run / "broken.toml").write_text("lr = = 3")
    (run / "wrong.toml").write_text('lrr = 1\nrounds = 0\ncolour = "red"\n')
    (run / "empty").mkdir(exist_ok=True)
    (run / "empty" / "ledger.sqlite").touch()
    for json_flag in ([], ["--json"]) if code == 3 else ([],):
        done = Hiso(run)(*command.split(), *json_flag)
        assert done.code == code, done.err
        assert words in " ".join(done.err.replace("│", " ").split())
        assert done.out == ""
        assert "Traceback" not in done.err
    assert not (run / "new").exists()


def test_a_run_killed_before_its_first_round(tmp_path, hiso, base):
    command = ("run", *flags(base), "--out", "run", "--json")
    process = hiso.start(*command)
    while not (tmp_path / "run" / "ledger.sqlite").exists() and process.is_alive():
        process.join(0.001)
    process.kill()
    hiso.end(process)
    done = hiso("inspect", "run", "--json")
    assert done.code == 6 or done.json["facts"]["rounds"] == 0  # killed before it was a ledger
    if done.code == 0:
        assert hiso("inspect", "run").code == 0
    assert hiso(*command).json["rounds"] == 6


def test_an_empty_ledger_is_no_run(tmp_path, hiso, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "ledger.sqlite").touch()
    assert "run holds no run" in hiso("run", "--resume", "--out", "run").err
    assert hiso("run", *flags(base), "--out", "run", "--json").json["rounds"] == 6


def test_what_is_no_ledger_is_left_alone(tmp_path, hiso, base):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "ledger.sqlite"
    file.write_text("my notes " * 100)
    done = hiso("run", *flags(base), "--out", "run")
    assert done.code == 6
    assert "not what hiso wrote there" in done.err
    assert file.read_text() == "my notes " * 100


def test_help_lists_every_setting():
    text = subprocess.run(
        [sys.executable, "-m", "hiso", "run", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "160"},
    ).stdout
    flags = {name.replace("_", "-") for name in Settings.model_fields} - {"task-definition"}
    for flag in [*flags, "text-column", "label-column"]:
        assert f"--{flag}" in text
    for field in Settings.model_fields.values():
        assert field.description
    for words in ("[default: 0.001]", "[forward|central]", "--no-joint", "--change", "--rollback"):
        assert words in text


def test_no_joint_is_another_setting_with_the_same_meaning(tmp_path, hiso, base):
    done = hiso("run", *flags(base | {"joint": False, "rounds": 2}), "--out", "run", "--json")
    assert done.json["settings"]["joint"] is False


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("lr=1e-4", ("lr", 1e-4)),
        ("eval-every=5", ("eval_every", 5)),
        ("scheme=central", ("scheme", "central")),
        ("model=/a=b", ("model", "/a=b")),
        ("dev_examples=null", ("dev_examples", None)),
    ],
)
def test_changes_are_read(text, change):
    assert parse_change(text) == change


def test_all_problems_of_settings_are_told_at_once():
    with pytest.raises(SettingsError) as caught:
        parse_settings({"lr": -1, "roundz": 3, "scheme": "backward", "mu": 0})
    for words in ("lr = -1", "roundz: unknown key", "scheme = 'backward'", "mu = 0"):
        assert words in str(caught.value)


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_shows_progress(tmp_path, hiso, base, monkeypatch, columns):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(columns)
    many = base | {"rounds": 60, "eval_every": 10}
    process = hiso.start("run", *flags(many), "--out", "run", terminal=terminal.name)
    terminal.read_until(process, NOWHERE)
    process.join()
    text = terminal.plain()
    assert process.exitcode == 0, text
    line = re.compile(
        r"rounds +[━╸╺ ]+ +\d+/60 +loss \d\.\d{3} · acc \d+\.\d% · \d[\d.]* K?B"
        r" · \d+\.\d\d s/round +ETA (\d\d:\d\d|--:--)"
    )
    assert line.search(text), text[-3000:]
    assert "loading model" in text
    assert "evaluating on" in text
    assert "digest" in text
    widest = max(len(row) for row in re.split(r"[\r\n]+", text) if "rounds" in row)
    assert widest <= columns


def test_an_interrupt_keeps_the_run(tmp_path, hiso, base):
    process = hiso.start("run", *flags(base | {"rounds": 100_000, "lr": 1e-5}), "--out", "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.is_alive() and not (metrics.exists() and '"round": 3' in metrics.read_text()):
        process.join(0.01)
    os.kill(process.pid, signal.SIGINT)
    done = hiso.end(process)
    assert done.code == 130, done.err
    assert "start again to resume" in done.err
    assert "Traceback" not in done.err
    rounds = json.loads(hiso("inspect", "run", "--json").out)["facts"]["rounds"]
    assert rounds >= 4
    again = ("run", "--out", "run", "--change", f"rounds={rounds + 2}", "--json")
    assert hiso(*again).json["rounds"] == rounds + 2


def test_the_installed_command_runs(tmp_path):
    command = Path(sys.executable).with_name("hiso")
    done = subprocess.run([command], capture_output=True, text=True, check=False)
    assert "Federated fine-tuning" in done.stdout + done.stderr
    for name in ("run", "eval", "inspect", "doctor", "bench", "report", "export", "predict"):
        assert name in done.stdout + done.stderr


@pytest.mark.parametrize(("given", "policy"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_told_otherwise(tmp_path, given, policy):
    """OpenMP itself says what it was told, since it reads its settings once, when torch loads."""
    env = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env |= {"OMP_DISPLAY_ENV": "TRUE"} | ({"OMP_WAIT_POLICY": given} if given else {})
    command = [sys.executable, "-m", "hiso", "eval", str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert re.findall(r"OMP_WAIT_POLICY = '(\w+)'", done.stderr) == [policy]
