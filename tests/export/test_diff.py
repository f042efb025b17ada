"""Where two logs part."""

from __future__ import annotations

import shutil

import pytest

from hiso import export_adapter, simulate
from hiso.export.diff import diff
from hiso.ring.ledger.ledger import Ledger

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_and_its_adapter_are_one(run, adapter):
    told = diff(run, adapter)
    assert told["position"] == 6
    assert told["first"] == [None, None]
    assert (told["identity_equal"], told["base_equal"], told["differences"]) == (True, True, [])
    assert told["a"]["digest"] == told["b"]["digest"]


@pytest.mark.parametrize("position", [0, 4])
def test_a_shorter_log_ends(tmp_path, run, position):
    export_adapter(run, tmp_path / "short", position=position)
    for a, b in ((run, tmp_path / "short"), (tmp_path / "short", run)):
        told = diff(a, b)
        assert told["position"] == position
        assert [first is None for first in told["first"]] == [a != run, b != run]


@pytest.mark.parametrize("position", [0, 2, 5])
def test_it_finds_where_they_part(tmp_path, run, base, position):
    other = shutil.copytree(run, tmp_path / "other")
    simulate(out=other, rollback=position, change={"lr": 0.005, "rounds": 7})
    told = diff(run, other)
    assert told["position"] == position
    assert told["identity_equal"]
    assert [first["changes"] for first in told["first"]] == [{}, {"lr": pytest.approx(0.005)}]
    with Ledger.read(run / "ledger.sqlite") as ledger:
        (record,) = ledger.records(position, position + 1)
    assert told["first"][0]["coefficients"] == record.coefficient.tolist()


def test_another_identity_is_told_with_what_differs(tmp_path, run, base):
    simulate(out=tmp_path / "other", **base | {"seed": 1, "rounds": 1})
    told = diff(run, tmp_path / "other")
    assert (told["identity_equal"], told["base_equal"]) == (False, True)
    assert any("seed" in difference for difference in told["differences"])
