"""Trackers: what TensorBoard reads back is what the run says of itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

import pytest

from hiso import simulate
from hiso.errors import LoadError, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.observer import Several, Silent
from hiso.run.results import Round
from hiso.run.track import TRACKERS, Tracker

from ..process import flags

pytestmark = pytest.mark.usefixtures("one_thread")

Points = dict[str, list[tuple[int, float]]]


def expected(folder: Path, start: int = 0) -> Points:
    """What metrics.jsonl says, from round `start` on."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if line["kind"] == "round"]
    points: Points = {}
    for key in ("loss", "seconds"):
        points[f"round/{key}"] = [(r["round"], r[key]) for r in rounds]
    for key in ("bytes_up", "bytes_down"):
        points[f"round/{key}"] = list(enumerate(accumulate(r[key] for r in rounds)))
    for line in (line for line in lines if line["kind"] == "evaluation"):
        for key in line.keys() - {"kind", "position", "split"}:
            points.setdefault(f"{line['split']}/{key}", []).append((line["position"], line[key]))
    return points


def stores(folder: Path) -> list[Path]:
    """The event folders of the runs that TensorBoard knows."""
    return sorted((folder / "track" / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime)


def read(store: Path) -> Points:
    """By step: of files begun in one second, TensorBoard reads that numbered 10 before 9."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(store)).Reload()
    return {
        tag: sorted((event.step, event.value) for event in events.Scalars(tag))
        for tag in events.Tags()["scalars"]
    }


def check(store: Path, points: Points) -> None:
    """TensorBoard keeps float32."""
    found = read(store)
    assert found.keys() == points.keys()
    for tag, series in points.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in series], tag
        assert [v for _, v in found[tag]] == pytest.approx([v for _, v in series], rel=1e-6), tag


def run(folder: Path, settings: dict, **more) -> None:
    with Tracker("tensorboard", folder) as tracker:
        simulate(out=folder, observer=tracker, **settings, **more)


def test_tensorboard_reads_what_the_run_says(tmp_path, base):
    folder = tmp_path / "run"
    run(folder, base)
    (store,) = stores(folder)
    points = expected(folder)
    assert {"round/loss", "round/bytes_down", "dev/accuracy", "test/loss"} <= points.keys()
    assert [step for step, _ in points["dev/loss"]] == [0, 3, 6]
    check(store, points)
    (hyper,) = store.glob("*/hparams.yml")
    assert "lr: 0.01\n" in hyper.read_text()
    with Ledger.open(folder / "ledger.sqlite") as ledger:
        assert f"run: {ledger.run}" in hyper.read_text()


def test_a_run_that_goes_on_tells_each_round_once(tmp_path, base):
    folder = tmp_path / "run"
    run(folder, base)
    run(folder, base)
    run(folder, base, change={"rounds": 9, "lr": 0.02})
    more = {"rounds": 9, "lr": 0.02}
    run(folder, base | more, change={"client_examples": 2})
    (store,) = stores(folder)
    points = expected(folder)
    assert len(points["round/loss"]) == 9
    assert "client 3/loss" in points
    check(store, points)
    assert len(list(store.glob("*/hparams.yml"))) == 1


class Stop(Silent):
    """Raises when a round is done, before the tracker behind it hears of it."""

    def __init__(self, at: int) -> None:
        self.at = at

    def round(self, done: Round) -> None:
        if done.round == self.at:
            raise KeyboardInterrupt


def test_a_round_that_was_committed_and_not_told_is_told_later(tmp_path, base):
    folder = tmp_path / "run"
    with Tracker("tensorboard", folder) as tracker, pytest.raises(KeyboardInterrupt):
        simulate(out=folder, observer=Several(Stop(2), tracker), **base)
    assert len(read(stores(folder)[0])["round/loss"]) == 2
    run(folder, base)
    (store,) = stores(folder)
    check(store, expected(folder))


def test_a_run_begun_without_a_tracker_is_told_from_its_start(tmp_path, base):
    folder = tmp_path / "run"
    simulate(out=folder, **base)
    run(folder, base, change={"rounds": 7})
    (store,) = stores(folder)
    check(store, expected(folder))


def test_a_rollback_gets_a_run_of_its_own(tmp_path, base):
    folder = tmp_path / "run"
    run(folder, base)
    before = expected(folder)
    run(folder, base, rollback=2, change={"lr": 0.05})
    old, new = stores(folder)
    assert expected(folder) != before
    check(old, before)
    check(new, expected(folder))


def test_notes_that_cannot_be_read_begin_a_new_run(tmp_path, base):
    folder = tmp_path / "run"
    run(folder, base)
    (folder / "track" / "tensorboard.json").write_text('{"name"')
    run(folder, base)
    old, new = stores(folder)
    check(old, expected(folder))
    check(new, expected(folder))


@pytest.fixture
def without_accelerate(monkeypatch) -> None:
    """Imports find no package of that name."""

    class Blind(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name == "accelerate" else PathFinder.find_spec(name, path, target)

    finders = [Blind if finder is PathFinder else finder for finder in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    monkeypatch.delitem(sys.modules, "accelerate", raising=False)


def test_a_missing_package_is_named(tmp_path, without_accelerate):
    with pytest.raises(LoadError, match=r"tensorboard needs accelerate. Run: pip install 'hiso\["):
        Tracker("tensorboard", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_the_flag(tmp_path, hiso, base):
    unknown = hiso("run", *flags(base), "--out", "run", "--track", "tensorbord", "--json")
    assert (unknown.code, unknown.out) == (2, "")
    assert "unknown tracker 'tensorbord' (did you mean 'tensorboard'?)" in unknown.err
    unknown = hiso("run", *flags(base), "--out", "run", "--track", "paper")
    assert "known: tensorboard, wandb, mlflow, trackio" in unknown.err
    missing = hiso("run", *flags(base), "--out", "run", "--track", "mlflow", "--json")
    assert (missing.code, missing.out) == (5, "")
    assert "tracking with mlflow needs mlflow. Run: pip install 'hiso[track]' mlflow" in missing.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match="known: tensorboard"):
        Tracker("paper", tmp_path)


def test_the_command_line_stays_one_json_object(tmp_path, hiso, base):
    words = ("--track", "tensorboard", "--track", "tensorboard", "--json")
    done = hiso("run", *flags(base), "--out", "run", *words)
    assert done.code == 0, done.err
    assert done.json["rounds"] == 6
    assert done.err == ""
    (store,) = stores(tmp_path / "run")
    check(store, expected(tmp_path / "run"))


class Diary(Silent):
    def __init__(self, lines: list[str], name: str) -> None:
        self.lines, self.name = lines, name

    def phase(self, text: str, total: int | None = None):
        from contextlib import contextmanager

        @contextmanager
        def watched() -> Iterator:
            self.lines.append(f"{self.name}: {text} of {total}")
            yield lambda units: self.lines.append(f"{self.name}: +{units}")
            self.lines.append(f"{self.name}: done")

        return watched()

    def started(self, position: int, rounds: int) -> None:
        self.lines.append(f"{self.name}: from {position} to {rounds}")

    def round(self, done: Round) -> None:
        self.lines.append(f"{self.name}: round {done.round}")

    def evaluated(self, evaluation: Evaluation) -> None:
        self.lines.append(f"{self.name}: {evaluation.split}")

    def notice(self, text: str) -> None:
        self.lines.append(f"{self.name}: {text}")


def test_several_observers_hear_the_same():
    lines: list[str] = []
    several = Several(Diary(lines, "a"), Diary(lines, "b"))
    with several.phase("work", 3) as advance:
        advance(2)
    several.started(1, 2)
    several.round(Round(1, 0.5, [0], 4, 4))
    several.evaluated(Evaluation(2, "dev", {"loss": 1.0}))
    several.notice("mind the gap")
    said = ["work of 3", "+2", "done", "from 1 to 2", "round 1", "dev", "mind the gap"]
    assert [line[3:] for line in lines if line[0] == "a"] == said
    assert [line[3:] for line in lines if line[0] == "b"] == said


def test_the_table_of_trackers_is_that_of_the_adapter():
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert TRACKERS.keys() <= LOGGER_TYPE_TO_CLASS.keys()
