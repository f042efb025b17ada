"""What a run will take, told before it begins, against what it took."""

from __future__ import annotations

import json

import pytest

from hiso import simulate
from hiso.run.estimate import Estimate
from hiso.run.launch import estimate_run, launch
from hiso.run.observer import Silent

from ..process import flags

pytestmark = pytest.mark.usefixtures("one_thread")


class Listener(Silent):
    def __init__(self):
        self.estimates: list[Estimate] = []

    def estimated(self, estimate):
        self.estimates.append(estimate)


@pytest.mark.parametrize(
    "more",
    [{}, {"method": "hizoo", "local_steps": 2}, {"per_client": True}, {"lr": "auto"}],
    ids=lambda more: "-".join(map(str, more.values())) or "plain",
)
def test_traffic_is_what_it_comes_to(tmp_path, base, more):
    given = base | more
    told = estimate_run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    summary = simulate(out=tmp_path / "run", **given)
    assert told.rounds == summary["rounds"]
    assert told.bytes_up == summary["bytes_up"]
    # Whoever is not asked in the last round lacks records; changes come on top.
    assert 0.5 * told.bytes_down <= summary["bytes_down"] <= 1.5 * told.bytes_down
    files = sum(path.stat().st_size for path in (tmp_path / "run").iterdir())
    assert 0.5 * files < told.disk_bytes < 2 * files
    assert told.seconds > 0
    assert told.memory_bytes > 2**20


def test_snapshots_are_part_of_the_disk(tmp_path, base):
    given = base | {"snapshot_every": 1}
    bare, told = estimate_run(base, tmp_path / "run"), estimate_run(given, tmp_path / "run")
    simulate(out=tmp_path / "run", **given)
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "snapshots").iterdir())
    assert told.disk_bytes - bare.disk_bytes == pytest.approx(size, rel=0.01)


def test_of_a_run_that_exists_what_is_left(tmp_path, base):
    listener = Listener()
    launch(base | {"rounds": 4}, tmp_path / "run", observer=listener)
    launch({}, tmp_path / "run", changes={"rounds": 6}, observer=listener)
    assert [e.rounds for e in listener.estimates] == [4, 2]
    launch({}, tmp_path / "run", observer=listener)
    assert len(listener.estimates) == 2
    ledger = (tmp_path / "run" / "ledger.sqlite").read_bytes()
    assert estimate_run({}, tmp_path / "run", changes={"rounds": 9}).rounds == 3
    assert estimate_run({}, tmp_path / "run", rollback=1).rounds == 5
    assert (tmp_path / "run" / "ledger.sqlite").read_bytes() == ledger


def test_on_the_command_line(hiso, base):
    asked = ["run", *flags(base), "--out", "run", "--estimate"]
    assert hiso(*asked).out.startswith("6 rounds")
    assert not (hiso.folder / "run").exists()
    assert json.loads(hiso(*asked, "--json").out)["rounds"] == 6
