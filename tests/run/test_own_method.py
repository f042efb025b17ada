"""Methods and tasks of one's own by their import paths, on the command line too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from hiso.core.identity import Identity
from hiso.core.importing import import_method, import_object
from hiso.core.method.registry import METHODS
from hiso.engines.replay import replay
from hiso.errors import LoadError, ProtocolError, RunConflict, SettingsError
from hiso.flower.envelope import Envelope, split
from hiso.flower.worker import Worker
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.server import Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.api import evaluate_run, simulate
from hiso.run.opened import open_run
from hiso.run.settings import parse_settings
from hiso.workloads.text.models import load_model
from hiso.workloads.text.tasks import get_task

from ..process import flags

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from hiso import HiSo, Method, Task
from hiso.core.method.ops import sign

@dataclass(frozen=True, kw_only=True)
class Lion(Method):
    name: ClassVar[str] = "own lion"
    step_state: ClassVar[dict[str, float]] = {"m": 0.0}
    beta: float = 0.5
    decay: float = 0.25

    def step(self, w, state, dx, hyper):
        m = hyper["beta"] * state["m"] + (1.0 - hyper["beta"]) * dx
        return w - hyper["lr"] * (sign(m) + hyper["decay"] * w), {"m": m}

lion = Lion(decay=0.125)

@dataclass(frozen=True, kw_only=True)
class Nameless(Method):
    pass

@dataclass(frozen=True, kw_only=True)
class Taken(Method):
    name: ClassVar[str] = "hiso"

@dataclass(frozen=True, kw_only=True)
class Demanding(Method):
    name: ClassVar[str] = "demanding"
    drag: float

films = Task(name="films", template="{text} It was", labels=(" bad", " good"))
"""
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path):
    """A folder with the package `ours`."""
    (tmp_path / "site" / "ours").mkdir(parents=True)
    (tmp_path / "site" / "ours" / "__init__.py").write_text("")
    (tmp_path / "site" / "ours" / "methods.py").write_text(MODULE)
    (tmp_path / "site" / "broken.py").write_text("1 / 0\n")
    return tmp_path / "site"


@pytest.fixture
def ours(place, monkeypatch):
    """The package can be imported here."""

    def forget():
        METHODS.pop("own lion", None)
        METHODS.pop("demanding", None)
        for name in ("ours", "ours.methods"):
            sys.modules.pop(name, None)

    monkeypatch.syspath_prepend(place)
    yield forget
    forget()


@pytest.fixture
def shell(tmp_path, place):
    """`hiso` in processes of its own, which find the package by PYTHONPATH or not at all."""

    def run(*words: object, path: bool = True):
        before = os.environ.get("PYTHONPATH", "")
        more = {"PYTHONPATH": f"{place}{os.pathsep}{before}"} if path else {}
        return subprocess.run(
            [sys.executable, "-m", "hiso", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=os.environ | more | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )

    return run


def test_the_command_line_takes_them(tmp_path, base, ours, shell):
    """One run begun, gone on with and evaluated, each by a process that knows the folder alone."""
    given = base | {"method": "ours.methods:Lion", "task": "ours.methods:films", "lr": 1e-3}
    first = shell("run", *flags(given), "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    folder = tmp_path / told["folder"]
    assert folder.name == "model-films-own lion-0"
    with Ledger.read(folder / "ledger.sqlite") as ledger:
        assert ledger.facts["method"]["name"] == "own lion"
        assert ledger.facts["method"]["hyper"] == {"lr": 1e-3, "beta": 0.5, "decay": 0.25}
        assert ledger.facts["task"]["name"] == "films"
    objects = import_object("ours.methods:Lion")(lr=1e-3), import_object("ours.methods:films")
    rest = {key: value for key, value in base.items() if key not in ("method", "lr")}
    same = simulate(out=tmp_path / "same", method=objects[0], task=objects[1], **rest)
    assert same["chain"] == told["chain"]

    more = ("--change", "rounds=9", "--change", "decay=0.5", "--change", "lr=2e-3", "--json")
    longer = shell("run", "--out", folder, "--resume", *more)
    assert longer.returncode == 0, longer.stderr
    change = {"rounds": 9, "decay": 0.5, "lr": 2e-3}
    again = simulate(
        out=tmp_path / "same", method=objects[0], task=objects[1], change=change, **rest
    )
    assert json.loads(longer.stdout)["chain"] == again["chain"]
    evaluated = shell("eval", folder, "--json")
    assert json.loads(evaluated.stdout)["digest"] == again["digest"]


def test_without_the_module_it_is_refused_with_what_to_do(tmp_path, base, ours, shell):
    given = base | {"method": "ours.methods:Lion", "rounds": 2}
    simulate(out=tmp_path / "run", **given)
    before = (tmp_path / "run" / "ledger.sqlite").read_bytes()
    for words in (["run", *flags(given), "--out", "new"], ["eval", "run"], ["run", "--out", "run"]):
        done = shell(*words, path=False)
        assert done.returncode in (2, 5)
        assert "No module named 'ours'" in done.stderr
        assert "PYTHONPATH" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "run" / "ledger.sqlite").read_bytes() == before
    assert shell("inspect", "run", path=False).returncode == 0


def test_whatever_reads_the_folder_finds_the_method(tmp_path, base, ours):
    """Replay of the ledger alone, too, in a process that has not heard of it."""
    out = tmp_path / "run"
    summary = simulate(out=out, **base | {"method": "ours.methods:lion"})
    for read in (
        lambda: evaluate_run(out)["digest"],
        lambda: f"{replay(out / 'ledger.sqlite', load_model(base['model']).model).digest():016x}",
    ):
        ours()
        assert read() == summary["digest"]
    ours()
    assert open_run(out).model.num_parameters() > 0
    ours()
    with Ledger.read(out / "ledger.sqlite") as ledger:
        assert ledger.identity.method.hyper["decay"] == 0.125
    assert simulate(out=out)["digest"] == summary["digest"]


def test_workers_find_it_too(tmp_path, base, ours):
    """Their log is the simulation's; a worker that starts again goes on where it stood."""
    given = base | {"method": "ours.methods:Lion", "task": "ours.methods:films", "joint": False}
    simulate(out=tmp_path / "run", **given)
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "site.toml").write_text('batches = "seed"\n')

    def start() -> Worker:
        ours()
        return Worker(parse_settings(given), tmp_path / "worker", own=None, alive=lambda: None)

    worker = start()
    identity = worker.handle(Envelope("hello", {}), [0]).facts["identity"]
    rounds = parse_settings(given).make_rounds(import_method("ours.methods:Lion"))
    with Ledger.create(tmp_path / "own.sqlite", Identity.parse(identity), given) as ledger:
        server = Server(ledger, replace(rounds, hyper=rounds.hyper | {"lr": given["lr"]}))
        for number in range(6):
            if number == 3:
                worker.close()
                worker = start()
                assert worker.position == 2
            for plan in server.ask():
                request = Envelope("round", {"identity": identity}, plan_to_bytes(plan))
                answer = worker.handle(request, [plan.client])
                assert server.tell(reply_from_bytes(*split(answer.body))).accepted
            server.close()
        with Ledger.read(tmp_path / "run" / "ledger.sqlite") as simulated:
            assert [r.to_bytes() for r in ledger.records()] == [
                r.to_bytes() for r in simulated.records()
            ]
    worker.close()


def test_a_ledger_whose_method_is_gone_says_so(tmp_path, base, ours, place, monkeypatch):
    out = tmp_path / "run"
    simulate(out=out, **base | {"method": "ours.methods:lion", "rounds": 2})
    ours()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(place)])
    with (
        Ledger.read(out / "ledger.sqlite") as ledger,
        pytest.raises(ProtocolError, match="No module named 'ours'"),
    ):
        _ = ledger.identity


def test_an_object_brings_its_values_and_settings_go_before_them(ours):
    method = parse_settings({"method": "ours.methods:lion", "lr": 0.5}).make_method()
    assert method.hyper == {"lr": 0.5, "beta": 0.5, "decay": 0.125}
    auto = parse_settings({"method": "ours.methods:Lion", "lr": "auto"}).make_method()
    assert (auto.auto, auto.name) == (True, "own lion")


def test_a_module_that_has_changed_its_values_is_another_run(tmp_path, base, ours, place):
    out = tmp_path / "run"
    simulate(out=out, **base | {"method": "ours.methods:lion", "rounds": 2})
    ours()
    file = place / "ours" / "methods.py"
    file.write_text(file.read_text().replace("decay=0.125", "decay=0.75"))
    with pytest.raises(RunConflict, match=r"decay: 0\.125 in the run, 0\.75 asked for"):
        simulate(out=out)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere.at:all", r"No module named 'nowhere'.*PYTHONPATH"),
        ("ours.methods:Lyon", "has no Lyon, did you mean Lion"),
        ("ours.methods:films", "is not a method: name a subclass"),
        ("hiso:Task", "is not a method"),
        ("ours.methods:sign", "is not a method"),
        ("hiso.core.method.base:Method", "has no name"),
        ("ours.methods:Nameless", "has no name"),
        ("ours.methods:Taken", "'hiso' belongs to another method"),
        ("ours.methods:Demanding", "'drag'.*a default"),
        ("broken:Lion", "raises ZeroDivisionError: division by zero"),
        ("ours.methods:", "write it as package.module:name"),
        (":Lion", "write it as package.module:name"),
        ("ours.methods.Lion", "unknown method"),
    ],
)
def test_what_is_no_method_is_refused(ours, path, words):
    with pytest.raises(SettingsError, match=words):
        parse_settings({"method": path})
    if ":" in path:
        with pytest.raises((LoadError, SettingsError), match=words):
            import_method(path)


def test_other_settings_are_told_of_beside_it(ours):
    with pytest.raises(SettingsError, match=r"lrr: unknown(.|\n)*No module named 'nowhere'"):
        parse_settings({"method": "nowhere:Lion", "lrr": 1})
    with pytest.raises(SettingsError, match=r"nu: ours\.methods:Lion has no such"):
        parse_settings({"method": "ours.methods:Lion", "nu": 1})


@pytest.mark.parametrize(
    ("path", "words"),
    [("ours.methods:Lion", "name a hiso.Task"), ("nowhere:films", "PYTHONPATH")],
)
def test_what_is_no_task_is_refused(ours, path, words):
    assert get_task("ours.methods:films").name == "films"
    with pytest.raises(LoadError, match=words):
        get_task(path)
