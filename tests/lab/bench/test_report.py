"""`hiso bench`, run whole on tiny models, and what people see of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hiso.cli.app import app
from hiso.cli.display import benchmark
from hiso.lab.bench import report as bench
from hiso.lab.bench.memory import MODES as ALL_MODES
from hiso.lab.bench.memory import Mode
from hiso.lab.bench.resident import measurable

PARTS = {"forward", "directions", "step", "data", "rest"}
SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
MODES = (
    Mode("full", "hiso", "float32"),
    Mode("full", "zo_sgd", "bfloat16"),
    Mode("lean", "hiso", "float32"),
)
WEIGHTS = 8192 * 512 + 4 * (4 * 512**2 + 3 * 512 * 2048 + 2 * 512) + 512


@pytest.fixture(scope="module")
def result(tiny_model, reviews) -> Any:
    small = bench.Size(
        settings={
            "model": str(tiny_model),
            "data": str(reviews),
            "batch_size": 2,
            "max_length": 24,
        },
        repeats=1,
        replay_weights=2**12,
        replay_rounds=(2, 4, 8),
        perturb_weights=2**14,
        shape=SHAPE,
        modes=MODES,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "FULL", small)
        return CliRunner().invoke(app, ["bench", "--against", "usual", "--json"])


@pytest.fixture(scope="module")
def report(result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def figure(report: dict[str, Any], path: str) -> Any:
    for key in path.split("."):
        report = report[key]
    return report


def test_json_is_one_line_and_nothing_else(result, report):
    assert result.stdout.count("\n") == 1
    assert result.stderr == ""
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_scripts_find_their_figures(report):
    for path in (
        "round_efficiency.float32",
        "round_efficiency.bfloat16",
        "rounds_over_usual.float32",
        "rounds_over_usual.bfloat16",
        "rounds_over_usual.bfloat16_both",
        "replay.weights_directions_per_second_per_core",
        "replay.over_torch",
        "replay.linearity",
        "replay.zo_sgd.over_torch",
        "perturb.over_copy",
        "perturb.zo_sgd_over_copy",
    ):
        assert figure(report, path) > 0
    assert set(report["memory"]["bytes_per_weight"]) == {"full", "lean"}
    assert report["versions"]["hiso"]
    assert report["machine"]["threads"] >= 1


def test_the_parts_make_up_the_round(report):
    for dtype in ("float32", "bfloat16"):
        split = report["split"][dtype]
        assert set(split) == PARTS
        assert min(split.values()) > 0
        assert sum(split.values()) <= report["seconds"][f"hiso {dtype}"]


def test_targets_quote_the_report(report):
    assert len({t["figure"] for t in report["targets"]}) == len(report["targets"]) >= 11
    for target in report["targets"]:
        assert target["value"] == figure(report, target["figure"])
        assert target["met"] in ((None,) if target["value"] is None else (True, False))


@pytest.mark.skipif(not measurable(), reason="memory cannot be measured here")
def test_memory_is_what_the_design_says(report):
    """The smallest buffer that could be there twice has two bytes a weight."""
    memory = report["memory"]
    assert memory["weights"] == WEIGHTS
    by_design = (8 + 4, 4 + 2, 8 + 4 * 8192 * 512 / WEIGHTS)
    for mode, expected in zip(MODES, by_design, strict=True):
        path = f"{mode.memory}.{mode.method}.{mode.dtype}"
        assert figure(memory["expected"], path) == pytest.approx(expected)
        assert abs(figure(memory["bytes_per_weight"], path) - expected) < 0.5, mode
        assert figure(memory["start_bytes_per_weight"], path) > 7.9
    assert abs(memory["many_clients"]["bytes_per_weight"] - 12) < 0.5


def test_all_modes_are_measured():
    assert bench.FULL.modes == ALL_MODES
    assert len(set(ALL_MODES)) == 2 * 2 * 2


def shown(report: dict[str, Any]) -> str:
    out = io.StringIO()
    benchmark(Console(file=out, width=80), report)
    return out.getvalue()


def test_people_can_read_it(report):
    text = shown(report)
    for word in ("targets", "round_efficiency.bfloat16", ">= 0.85", "usual float32", "lean hiso"):
        assert word in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_verdicts_are_words(report):
    kinds = {True: "met", False: "missed", None: "not measured"}
    for met, word in kinds.items():
        target = {"figure": "some.figure", "value": 1.0, "target": ">= 2", "met": met}
        (line,) = [
            row for row in shown(report | {"targets": [target]}).splitlines() if "some.fig" in row
        ]
        assert line.rstrip("│ ").endswith(word)


def test_the_bar_shows_shares(report):
    split = {"forward": 3.0, "directions": 1.5, "step": 0.9, "data": 0.6, "rest": 0.0}
    lines = shown(report | {"split": {"float32": split}}).splitlines()
    at = lines.index("a round in float32: 6 s")
    assert lines[at + 1] == "█" * 30 + "▓" * 15 + "▒" * 9 + "░" * 6
    legend = "█ forward 50.0%  ▓ directions 25.0%  ▒ step 15.0%  ░ data 10.0%  · rest 0.0%"
    assert lines[at + 2] == legend


def test_there_is_one_thing_to_compare_with():
    done = CliRunner().invoke(app, ["bench", "--against", "fedavg"])
    assert done.exit_code == 2
    assert "must be usual" in done.output
