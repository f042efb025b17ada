"""What a run leaves behind, and that the same settings give the same bits."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from hiso import HiSo, Method, simulate
from hiso.core.method.ops import maximum
from hiso.core.method.registry import METHODS
from hiso.errors import HisoError, LoadError, RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.inspect import inspect_run
from hiso.run.launch import evaluate_run
from hiso.run.settings import parse_settings

from ..process import flags

pytestmark = pytest.mark.usefixtures("one_thread")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves_behind(tmp_path, base):
    out = tmp_path / "run"
    s = simulate(out=out, **base | {"rounds": 8, "clients": 5, "local_steps": 2})
    assert json.loads((out / "summary.json").read_text()) == s
    assert sorted(path.name for path in out.iterdir()) == [
        "ledger.sqlite",
        "metrics.jsonl",
        "summary.json",
    ]
    with Ledger.open(out / "ledger.sqlite") as ledger:
        rows, records = ledger.rounds(), ledger.records()
        ledger.verify()
        assert s["chain"] == ledger.chain_at(8).hex()
        assert s["run"] == ledger.run
        assert s["settings"] == ledger.settings

    # By hand: a reply is 2·2 scalars, a plan the scalars of the rounds since the client's last.
    stands = dict.fromkeys(range(5), 0)
    up = down = 0
    for row in rows:
        assert len(row.clients) == 2
        assert row.bytes_up == 4 * 2 * (2 * 2)
        assert row.bytes_down == sum(4 * (2 * 2) * (row.round - stands[i]) for i in row.clients)
        stands |= dict.fromkeys(row.clients, row.round)
        up, down = up + row.bytes_up, down + row.bytes_down
    assert (s["bytes_up"], s["bytes_down"]) == (up, down)
    assert s["paper_bytes"] == 2 * 8 * 2 * 2 * 4
    assert s["fedavg_bytes_up"] == s["fedavg_bytes_down"] == 8 * 2 * 4 * s["trainable_weights"]
    assert s["trainable_weights"] == 44_192
    assert all(record.terms == 4 for record in records)

    assert s["rounds"] == 8
    for when in ("before", "after"):
        assert s[f"accuracy_{when}"] == s[f"metrics_{when}"]["accuracy"]
        assert s[f"loss_{when}"] == s[f"metrics_{when}"]["loss"]
        assert 0 <= s[f"accuracy_{when}"] <= 1
    again = evaluate_run(out)
    assert again["digest"] == s["digest"]
    assert {name: again[name] for name in s["metrics_after"]} == s["metrics_after"]
    before = evaluate_run(out, position=0)
    assert before["loss"] == s["loss_before"]
    assert evaluate_run(out, split="dev", position=6)["loss"] == pytest.approx(
        next(x["loss"] for x in lines_of(out) if x.get("position") == 6)
    )
    assert s["seconds_per_round"] >= s["forward_seconds_per_round"] > 0
    assert s["peak_memory_bytes"] > 10**7

    lines = lines_of(out)
    assert Counter(line["kind"] for line in lines) == {"round": 8, "evaluation": 5}
    places = [(line["position"], line["split"]) for line in lines if line["kind"] == "evaluation"]
    assert places == [(0, "dev"), (0, "test"), (3, "dev"), (6, "dev"), (8, "test")]
    for line, row in zip([x for x in lines if x["kind"] == "round"], rows, strict=True):
        assert line["round"] == row.round
        assert (line["loss"], line["clients"]) == (row.loss, row.clients)
        assert (line["bytes_up"], line["bytes_down"]) == (row.bytes_up, row.bytes_down)


def test_the_same_settings_give_the_same_bits_and_another_seed_others(tmp_path, base):
    first, second, other = (
        simulate(out=tmp_path / name, seed=seed, **base)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert (first["digest"], first["chain"]) == (second["digest"], second["chain"])
    assert first["metrics_after"] == second["metrics_after"]
    assert other["digest"] != first["digest"]
    assert lines_of(tmp_path / "a")[0] == lines_of(tmp_path / "c")[0]  # tuned on the same examples


def test_lean_memory_gives_the_same_run(tmp_path, base):
    full, lean = (
        simulate(out=tmp_path / memory, **base | {"memory": memory, "local_steps": 2})
        for memory in ("full", "lean")
    )
    same = ("digest", "chain", "accuracy_after", "loss_after")
    assert [full[name] for name in same] == [lean[name] for name in same]


def test_python_and_the_command_line_make_the_same_run(tmp_path, base, hiso):
    """Though one gives a method and the other flags; and each goes on with the other's run."""
    from_python = simulate(
        out=tmp_path / "python", method=HiSo(lr=0.02, nu=0.1), **without_method(base)
    )
    file = tmp_path / "run.toml"
    file.write_text(
        "".join(f"{k} = {json.dumps(v)}\n" for k, v in base.items()) + 'nu = 0.1\nout = "toml"\n'
    )
    done = hiso("run", "run.toml", "--lr", 0.02, "--json")
    assert done.code == 0, done.err
    assert done.json["digest"] == from_python["digest"]
    assert done.json["chain"] == from_python["chain"]
    assert done.json["folder"] == "toml"
    assert done.json["settings"]["lr"] == 0.02  # a flag goes before the file
    assert not (tmp_path / "runs").exists()
    resumed = simulate(out=tmp_path / "toml", method=HiSo(lr=0.02, nu=0.1), **without_method(base))
    assert resumed["digest"] == from_python["digest"]
    flagged = hiso("run", *flags(base | {"lr": 0.02, "nu": 0.1}), "--out", "python", "--json")
    assert flagged.json["digest"] == from_python["digest"]


def without_method(settings: dict) -> dict:
    return {key: value for key, value in settings.items() if key not in ("method", "lr")}


@dataclass(frozen=True, kw_only=True)
class Sluggish(Method):
    """Not among hiso's own: a floor under |w|-dependent steps, with a hyper-parameter `drag`."""

    name = "sluggish"
    drag: float = 2.0

    def step(self, w, state, dx, hyper):
        return w - hyper["lr"] * dx / maximum(1.0, hyper["drag"] * w * w), {}


@pytest.fixture
def own_method():
    yield Sluggish
    METHODS.pop("sluggish", None)


def test_a_method_of_ones_own(tmp_path, base, own_method):
    out, rest = tmp_path / "run", without_method(base)
    first = simulate(out=out, method=own_method(lr=0.01), **rest)
    assert first["settings"]["method"] == "sluggish"
    assert evaluate_run(out, method=own_method())["digest"] == first["digest"]
    longer = {"rounds": 9, "lr": 0.02, "drag": 3}
    second = simulate(out=out, method=own_method(lr=0.01), change=longer, **rest)
    assert second["rounds"] == 9
    with Ledger.open(out / "ledger.sqlite") as ledger:
        assert {k: v for r in ledger.records() for k, v in r.changes.items()} == {
            "lr": pytest.approx(0.02),
            "drag": 3,
        }
        assert ledger.records()[6].changes.keys() == {"lr", "drag"}
    assert evaluate_run(out, method=own_method())["digest"] == second["digest"]
    same = simulate(out=out, method=own_method(lr=0.01), change=longer, **rest)
    assert same == second
    with pytest.raises(RunConflict, match=r"drag: 3 in the run, 5 asked for"):
        simulate(out=out, method=own_method(lr=0.02, drag=5), **rest | {"rounds": 9})


def test_methods_are_told_apart_by_name(tmp_path, base, own_method):
    class Sluggish(own_method):
        """As when a notebook's cell runs again, but elsewhere."""

    simulate(out=tmp_path / "run", method=own_method(), **without_method(base) | {"rounds": 1})
    with pytest.raises(SettingsError, match="'sluggish' belongs to another method"):
        simulate(out=tmp_path / "other", method=Sluggish(), **without_method(base))
    with pytest.raises(SettingsError, match="lr: given twice"):
        simulate(out=tmp_path / "other", **base | {"method": HiSo()})


TEXT = "text\n" + "".join(f"The film {i} was very good and the plot {i * 7}.\n" for i in range(40))
ALIKE = {"premise", "hypothesis", "label"}


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "dirichlet", "alpha": 0.5},
        {"partition": "column", "partition_column": "critic", "clients": 3},
        {"per_client": True, "local_steps": 2, "scheme": "central"},
        {"method": "hizoo", "weighting": "examples", "feed": "all"},
        {"method": "momentum", "noise": "gaussian", "joint": False},
        {"method": "zo_sgd", "dtype": "bfloat16", "mu": 1e-2},
    ],
    ids=lambda s: "-".join(map(str, s.values())),
)
def test_every_kind_of_run_can_be_replayed(tmp_path, base, settings):
    summary = simulate(out=tmp_path / "run", **base | settings | {"rounds": 3})
    assert evaluate_run(tmp_path / "run")["digest"] == summary["digest"]


def test_free_text(tmp_path, base):
    (tmp_path / "text.csv").write_text(TEXT)
    base |= {"task": "text", "data": str(tmp_path / "text.csv"), "rounds": 3}
    summary = simulate(out=tmp_path / "run", **base)
    assert summary["accuracy_after"] is None
    assert summary["metrics_after"].keys() == {"loss", "perplexity"}
    assert evaluate_run(tmp_path / "run")["perplexity"] == summary["metrics_after"]["perplexity"]


def test_label_words_of_several_tokens(tmp_path, base, tiny_model):
    """With this tokenizer two of the three words begin alike."""
    rows = [{"premise": f"p {i}", "hypothesis": f"h {i}", "label": i % 3} for i in range(40)]
    file = tmp_path / "cb.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    base |= {"task": "cb", "data": str(file), "rounds": 3, "max_length": 64}
    summary = simulate(out=tmp_path / "run", **base)
    assert summary["metrics_after"].keys() == {"loss", "accuracy", "f1"}


def test_inspect_agrees_with_the_summary(tmp_path, base):
    s = simulate(out=tmp_path / "run", **base)
    told = inspect_run(tmp_path / "run", last=2)
    assert told["facts"]["digest"] == s["digest"]
    assert told["facts"]["chain"] == s["chain"]
    assert told["facts"]["bytes_up"] == s["bytes_up"]
    assert [r["round"] for r in told["rounds"]] == [4, 5]
    assert len(inspect_run(tmp_path / "run", last=100)["rounds"]) == 6
    assert inspect_run(tmp_path / "run", last=0)["rounds"] == []


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ({"sample": 9}, SettingsError, "sample = 9"),
        ({"mu": 1e-60}, SettingsError, "mu = 1e-60 must be a positive float32"),
        ({"lr": 1e39}, SettingsError, "lr = 1e"),
        ({"lr": float("nan")}, SettingsError, "lr = nan"),
        ({"method": "hizo"}, SettingsError, "did you mean 'hizoo'"),
        ({"method": "zo_sgd", "nu": 0.1}, SettingsError, "nu: zo_sgd has no such"),
        ({"max_length": 2000}, SettingsError, "reads no more than 128"),
        ({"clients": 1000, "sample": 1}, SettingsError, "1,000 clients for"),
        ({"partition": "column"}, SettingsError, "partition_column go together"),
        ({"rounds": 0}, SettingsError, "rounds = 0"),
        ({"roundz": 1}, SettingsError, r"roundz: unknown key \(did you mean 'rounds'"),
        ({"model": "/no/such/model"}, LoadError, "/no/such/model"),
        ({"data": "/no/such.csv"}, LoadError, "/no/such.csv"),
        ({"task": "ssst2"}, LoadError, "Did you mean sst2"),
        ({"task": "rte"}, LoadError, "no column"),
        ({"change": {"lr": 0.1}}, RunConflict, "holds no run yet"),
        ({"rollback": 3}, RunConflict, "holds no run yet"),
    ],
    ids=lambda value: str(next(iter(value))) if isinstance(value, dict) else None,
)
def test_a_failure_leaves_no_folder(tmp_path, base, wrong, error, words):
    with pytest.raises(error, match=words):
        simulate(out=tmp_path / "run", **base | wrong)
    assert not (tmp_path / "run").exists()


def test_a_method_that_cannot_be_compiled_leaves_no_folder(tmp_path, base):
    @dataclass(frozen=True, kw_only=True)
    class Broken(Method):
        name = "broken"

        def step(self, w, state, dx, hyper):
            return w - hyper["eta"] * dx, {}

    with pytest.raises((HisoError, KeyError)):
        simulate(out=tmp_path / "run", method=Broken(), **without_method(base))
    assert not (tmp_path / "run").exists()
    METHODS.pop("broken")


def test_zero_stands_for_all_and_for_none(tmp_path, base):
    """Files of settings and flags have no null."""
    zero = {"dev_examples": 0, "test_examples": 0, "divergence_factor": 0, "eval_every": 0}
    s = simulate(out=tmp_path / "run", **base | zero | {"rounds": 1})
    assert {s["settings"][key] for key in zero} == {None, 0}
    assert s["settings"]["divergence_factor"] is None


@pytest.mark.model
def test_the_packaged_model(tmp_path, reviews):
    out = tmp_path / "run"
    settings = {"method": "hiso", "rounds": 2, "sample": 1, "directions": 1, "batch_size": 2}
    settings |= {"max_length": 16}
    s = simulate(out=out, data=str(reviews), test_examples=4, eval_every=0, **settings)
    assert s["trainable_weights"] == 134_515_008
    assert (s["bytes_up"], s["paper_bytes"]) == (2 * 4, 2 * 2 * 4)
    assert evaluate_run(out)["digest"] == s["digest"]


def test_settings_tell_all_that_is_wrong_at_once():
    with pytest.raises(SettingsError) as caught:
        parse_settings({"lr": -1, "sample": 9, "clients": 4, "nonsense": 1, "direction": 3})
    for part in ("lr = -1", "nonsense: unknown key", "'directions'?", "sample = 9"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"perturbations": 3}, "perturbations: unknown key; it is called directions now"),
        ({"directions": "per-client"}, "set per_client = true or false"),
    ],
)
def test_settings_of_before_are_refused_with_their_new_name(old, now):
    with pytest.raises(SettingsError) as caught:
        parse_settings(old)
    assert now in str(caught.value)
