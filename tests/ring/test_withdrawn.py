"""Clients that have left a run for good."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import SettingsError
from hiso.ring.accept.quarantine import sample_clients
from hiso.ring.round_settings import RoundSettings
from hiso.run.api import simulate
from hiso.run.settings import parse_settings
from hiso.run.watch import watch_run

RULES = RoundSettings(clients=8, sample=4, steps=1, directions=1, mu=1e-3, min_replies=2)


@given(st.sets(st.integers(0, 7), max_size=6), st.integers(0, 1000))
def test_they_are_not_sampled_and_the_others_keep_their_order(gone, round):
    rules = replace(RULES, withdrawn=frozenset(gone))
    asked = sample_clients(7, round, 0, rules, {})
    assert len(asked) == min(4, 8 - len(gone))
    assert not gone & set(asked)
    before = sample_clients(7, round, 0, RULES, {})
    assert set(before) - gone <= set(asked)


@pytest.mark.parametrize("gone", [{8}, {0, 1, 2, 3, 4, 5, 6}])
def test_impossible_ones_are_refused(gone):
    with pytest.raises(SettingsError, match="withdrawn"):
        replace(RULES, withdrawn=frozenset(gone))


def test_a_run_goes_on_without_them_and_says_so(tmp_path, base):
    given = base | {"clients": 4, "sample": 3, "rounds": 3}
    simulate(out=tmp_path / "run", **given)
    summary = simulate(out=tmp_path / "run", change={"withdrawn": "0,2", "rounds": 6})
    assert summary["settings"]["withdrawn"] == "0,2"
    assert [c.client for c in watch_run(tmp_path / "run").clients if c.withdrawn] == [0, 2]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    import json

    rounds = [row for row in map(json.loads, lines) if row["kind"] == "round"]
    assert [row["clients"] for row in rounds[3:]] == [[1, 3]] * 3
    assert {0, 2} & {client for row in rounds[:3] for client in row["clients"]}


def test_one_client_may_be_a_number():
    assert parse_settings({"withdrawn": 3, "min_replies": 1}).withdrawn == "3"
