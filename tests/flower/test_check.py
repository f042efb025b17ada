"""`hiso worker check`: what it tells of a site is true, and it finds what would stop a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from .federation import Deployment, write_toml


@pytest.fixture
def toml(tmp_path, settings) -> Path:
    path = tmp_path / "settings.toml"
    write_toml(path, settings | {"directions": 3, "local_steps": 2})
    return path


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def checked(hiso, toml: Path, *arguments: object) -> tuple[int, dict]:
    done = hiso("worker", "check", toml, "--folder", toml.parent / "w", "--json", *arguments)
    return done.code, json.loads(done.out, parse_constant=no_constant)


def test_what_is_told_is_true(hiso, toml, reviews):
    code, found = checked(hiso, toml, "--client", 1)
    assert (code, found["problems"]) == (0, [])
    data, round = found["data"], found["a round"]
    assert data["columns found"] == "text, label, critic"
    assert data["columns read"] == "text, label"
    with reviews.open() as file:
        rows = len(list(csv.reader(file))) - 1
    assert data["examples for training"] + data["examples kept apart, dev and test"] == rows
    counts = [value for name, value in data.items() if name.startswith("label ")]
    assert sum(counts) == data["examples for training"]
    assert (round["scalars sent"], round["bytes of these"]) == (6, 24)
    assert round["trainable weights"] > 44_000
    assert found["site.toml"]["max_mu"] is None
    assert not (toml.parent / "w").exists()


def test_several_clients_share_the_data_and_send_more(hiso, toml):
    _, one = checked(hiso, toml, "--client", 0)
    _, three = checked(hiso, toml, "--client", "0-2")
    assert three["data"]["clients"] == 3
    assert three["data"]["examples for training"] == one["data"]["examples for training"]
    assert 3 * three["data"]["fewest at a client"] <= one["data"]["examples for training"]
    assert three["a round"]["scalars sent"] == 18
    sizes = [found["a round"]["bytes of the whole message"] for found in (one, three)]
    assert sizes[0] < sizes[1] < 3 * sizes[0]


def test_all_problems_are_told_at_once(hiso, toml):
    code, found = checked(hiso, toml, "--client", 0, "--data", "no.csv", "--model", "no-model")
    assert [problem["where"] for problem in found["problems"]] == ["model and data", "model"]
    assert {problem["error"] for problem in found["problems"]} == {"LoadError"}
    assert code == 5
    assert "site.toml" in found


def test_what_the_site_itself_refuses_is_told(hiso, toml):
    (toml.parent / "w").mkdir()
    (toml.parent / "w" / "site.toml").write_text("max_scalars_per_round = 5\nmin_batch = 100\n")
    code, found = checked(hiso, toml, "--client", 0)
    ((where, error),) = {(problem["where"], problem["error"]) for problem in found["problems"]}
    assert (where, error, code) == ("site.toml", "SettingsError", 2)
    (problem,) = found["problems"]
    assert "6 scalars" in problem["reason"]
    assert "100" in problem["reason"]
    assert [path.name for path in (toml.parent / "w").iterdir()] == ["site.toml"]


@pytest.mark.flower
@pytest.mark.timeout(120)
def test_whether_the_superlink_is_there(hiso, toml, tmp_path):
    site = Deployment(tmp_path / "d")
    try:
        way = ("--client", 0, "--superlink", site.address(), "--insecure")
        code, found = checked(hiso, toml, *way)
        assert code == 6
        assert [problem["where"] for problem in found["problems"]] == ["SuperLink"]
        site.superlink()
        code, found = checked(hiso, toml, *way)
        assert (code, found["SuperLink"]["reached"]) == (0, True)
        assert "ctivated" not in site.output("superlink")  # no node was registered
    finally:
        site.close()


def test_a_table_for_people(hiso, toml):
    done = hiso("worker", "check", toml, "--client", 0, "--folder", toml.parent / "w")
    assert done.code == 0
    assert "label " in done.out
    assert "nothing found that stops a run" in done.out
