"""Adapters: that a log survives, what is in the file, and that a model comes back from it."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import hiso
from hiso import HiSo, Identity, Method, evaluate_run, export_adapter, load, simulate
from hiso.core.method.registry import METHODS
from hiso.core.record import Record
from hiso.errors import HisoError, LoadError, ProtocolError, RunConflict, SettingsError
from hiso.export.adapter import (
    CARD,
    FILE,
    Adapter,
    public_name,
    read_adapter,
    read_log,
    write_file,
)
from hiso.export.cards import adapter_card
from hiso.export.out import apply
from hiso.ring.ledger.ledger import Ledger
from hiso.run.doctor import sample_record

from ..tiny import make_tokenizer, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
named = st.dictionaries(st.sampled_from(["lr", "nu", "µ"]), floats, max_size=2)


@st.composite
def logs(draw: st.DrawFn) -> tuple[Record, ...]:
    """Records that follow each other, some with the same coordinates."""
    curvature = draw(st.booleans())

    def coordinates() -> dict[str, np.ndarray]:
        step = np.cumsum([0, *draw(st.lists(st.integers(0, 1), max_size=5))]).astype(np.uint16)
        stream = draw(st.lists(st.integers(0, 2**32 - 1), min_size=step.size, max_size=step.size))
        p = draw(st.lists(st.integers(0, 2**16 - 1), min_size=step.size, max_size=step.size))
        return {"step": step, "stream": np.array(stream, "u4"), "direction": np.array(p, "u2")}

    def scalars(count: int) -> np.ndarray:
        return np.array(draw(st.lists(floats, min_size=count, max_size=count)), np.float32)

    kinds = [coordinates() for _ in range(draw(st.integers(1, 3)))]
    records = []
    for number in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(kinds))
        count = kind["step"].size
        extra = scalars(count) if curvature else None
        records.append(
            Record(number, **kind, coefficient=scalars(count), curvature=extra,
                   changes=draw(named), facts=draw(named))
        )  # fmt: skip
    return tuple(records)


def written(adapter: Adapter, folder: Path) -> Path:
    write_file(adapter, folder / FILE)
    return folder / FILE


@given(logs(), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_log_is_read_as_it_was_written(tmp_path_factory, records, before, after):
    identity = Identity(method=HiSo(lr=0.1), seed=3, facts={"any": ["thing", 1]})
    adapter = Adapter(identity, records, "smollm2", before, after)
    again = read_adapter(written(adapter, tmp_path_factory.mktemp("adapter")))
    assert [r.to_bytes() for r in again.records] == [r.to_bytes() for r in records]
    assert again.identity.text == identity.text
    assert (again.chain, again.position) == (adapter.chain, len(records))
    assert (again.before, again.after, again.base) == (before, after, "smollm2")


def test_it_is_small(tmp_path):
    """Five scalars of a round are 20 bytes, and 4 more say which pattern they have."""
    identity = Identity(method=HiSo(), seed=0)
    sizes = {}
    for rounds in (0, 500):
        records = tuple(sample_record(r) for r in range(rounds))
        path = written(Adapter(identity, records, None, 1, 2), tmp_path)
        sizes[rounds] = path.stat().st_size
    assert sizes[500] - sizes[0] < 500 * (5 * 4 + 4) + 200
    assert sizes[0] < 2000


def test_the_log_of_a_run_is_in_its_adapter(run, adapter):
    log = read_adapter(adapter)
    with Ledger.read(run / "ledger.sqlite") as ledger:
        assert [r.to_bytes() for r in log.records] == [r.to_bytes() for r in ledger.records()]
        assert (log.chain, log.before) == (ledger.chain_at(6), ledger.digest_at(0))
    card = json.loads((adapter / CARD).read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert card["digest_after"] == summary["digest"] == f"{log.after:016x}"
    assert (card["chain"], card["run"]) == (summary["chain"], summary["run"])
    assert (card["rounds"], card["scalars"]) == (6, 12)


def test_nothing_private_is_in_it(run, adapter, reviews, tiny_model):
    """No path, no text, no loss; the names of whatever is in there are known."""
    raw = b"".join(path.read_bytes() for path in adapter.iterdir())
    assert {path.name for path in adapter.iterdir()} == {FILE, CARD}
    for secret in (str(reviews), str(tiny_model), str(run), "film 1 was", "awful"):
        assert secret.encode() not in raw
    assert b"loss" not in raw.replace(b"no examples and no losses", b"").replace(
        b"slope of the loss", b""
    )
    with Ledger.read(run / "ledger.sqlite") as ledger:
        losses = np.array(ledger.losses(), np.float32)
        scalars = [row.scalars for row in ledger.replies()]
    assert load_file(adapter / FILE).keys() == {
        *("coefficient", "pattern"),
        *(f"pattern.{name}" for name in ("terms", "step", "stream", "direction")),
        *(f"{what}.{part}" for what in ("change", "fact") for part in ("round", "name", "value")),
    }
    told = load_file(adapter / FILE)["coefficient"]
    assert not np.isin(losses, told).any()
    assert not np.isin(np.concatenate(scalars), told).any()  # means alone, no client's own


def test_the_card_says_whose_scalars_they_are(tmp_path, base, adapter):
    simulate(out=tmp_path / "run", **base | {"rounds": 2, "per_client": True})
    own = read_log(tmp_path / "run")
    shared = read_adapter(adapter)
    told = [adapter_card(replace(log, before=1, after=2))["reveals"] for log in (shared, own)]
    assert told[1].startswith(told[0])
    assert "client numbers" in told[1]


SETTINGS: dict[str, dict[str, Any]] = {
    "own directions": {"per_client": True, "local_steps": 2},
    "half": {"method": "zo_sgd", "dtype": "bfloat16", "mu": 1e-2},
    "lean": {"method": "momentum", "memory": "lean", "noise": "gaussian"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_kind_of_run_comes_back(tmp_path, base, tiny_model, settings):
    summary = simulate(out=tmp_path / "run", **base | settings | {"rounds": 4})
    done = export_adapter(tmp_path / "run", tmp_path / "adapter")
    tuned = load(tiny_model, tmp_path / "adapter")
    assert f"{tuned.digest:016x}" == done["digest"] == summary["digest"]
    assert {p.dtype for p in tuned.model.parameters()} == {torch.float32}


def test_a_change_of_a_hyper_parameter_comes_along(tmp_path, base, tiny_model):
    out = tmp_path / "run"
    simulate(out=out, **base | {"rounds": 2})
    summary = simulate(out=out, change={"rounds": 4, "lr": 0.005})
    export_adapter(out, tmp_path / "adapter")
    tuned = load(tiny_model, tmp_path / "adapter")
    assert f"{tuned.digest:016x}" == summary["digest"]
    assert read_adapter(tmp_path / "adapter").hyper["lr"] == np.float32(0.005)


@pytest.mark.parametrize("position", [0, 2, 6])
def test_any_position_can_be_exported(tmp_path, run, tiny_model, position):
    done = export_adapter(run, tmp_path / "adapter", position=position)
    assert done["digest"] == evaluate_run(run, position=position)["digest"]
    assert f"{load(tiny_model, tmp_path / 'adapter').digest:016x}" == done["digest"]


def test_the_model_is_loaded_only_if_a_digest_is_missing(tmp_path, base, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    summary = simulate(out=tmp_path / "run", **base | {"model": str(model), "rounds": 2})
    shutil.move(model, tmp_path / "away")
    done = export_adapter(tmp_path / "run", tmp_path / "one")
    assert done["digest"] == summary["digest"]
    told = tmp_path / "run" / "summary.json"
    for spoiled in ({"digest": None}, {"digest": "no digest"}, {"chain": "0" * 64}):
        told.write_text(json.dumps(summary | spoiled))
        with pytest.raises(LoadError):
            export_adapter(tmp_path / "run", tmp_path / "two")
    told.unlink()
    with pytest.raises(LoadError):
        export_adapter(tmp_path / "run", tmp_path / "two")
    assert not (tmp_path / "two").exists()
    shutil.move(tmp_path / "away", model)
    assert export_adapter(tmp_path / "run", tmp_path / "two")["digest"] == summary["digest"]


def test_a_base_may_be_an_object(run, adapter, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    own, named = load(model, adapter, tokenizer=tokenizer), load(tiny_model, adapter)
    assert own.digest == named.digest
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    with pytest.raises(SettingsError):
        load(model, adapter)
    with pytest.raises(LoadError):
        load(None, adapter)  # it was a local folder, which nobody else knows


def test_a_run_of_an_object_is_exported_with_it(tmp_path, base, tiny_model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.lm_head.requires_grad_(False)
    objects = {"model": model, "tokenizer": AutoTokenizer.from_pretrained(tiny_model)}
    summary = simulate(out=tmp_path / "run", **base | objects | {"rounds": 2})
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    tuned = load(model, tmp_path / "adapter", tokenizer=objects["tokenizer"])
    assert f"{tuned.digest:016x}" == summary["digest"]
    assert torch.equal(tuned.model.lm_head.weight, model.lm_head.weight)
    with pytest.raises(ProtocolError, match="other parameters of it were trained"):
        load(tiny_model, tmp_path / "adapter")  # of which all is trained
    with pytest.raises(LoadError):
        hiso.export_model(tmp_path / "run", tmp_path / "model")
    done = hiso.export_model(
        tmp_path / "run", tmp_path / "model", base=model, tokenizer=objects["tokenizer"]
    )
    assert done["digest"] == summary["digest"]


@dataclass(frozen=True, kw_only=True)
class Halved(Method):
    """A method that hiso does not know by itself."""

    name = "halved"

    def step(self, w, state, dx, hyper):
        return w - hyper["lr"] * 0.5 * dx, {}


def test_a_method_of_ones_own(tmp_path, base, tiny_model):
    rest = {key: value for key, value in base.items() if key not in ("method", "lr")} | {
        "rounds": 2
    }
    summary = simulate(out=tmp_path / "run", method=Halved(lr=0.01), **rest)
    export_adapter(tmp_path / "run", tmp_path / "adapter", method=Halved)
    METHODS.pop("halved")
    with pytest.raises(ProtocolError):
        load(tiny_model, tmp_path / "adapter")
    tuned = load(tiny_model, tmp_path / "adapter", method=Halved)
    assert f"{tuned.digest:016x}" == summary["digest"]


def _other_weights(folder: Path, tiny_model: Path) -> None:
    save_model(folder, "llama", seed=1)


def _half_precision(folder: Path, tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    model.save_pretrained(folder)


def _other_tokenizer(folder: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, folder)
    make_tokenizer(begin=True).save_pretrained(folder)


def _other_architecture(folder: Path, tiny_model: Path) -> None:
    save_model(folder, "opt")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_other_weights, "its weights differ"),
        (_half_precision, "precision"),
        (_other_tokenizer, "its tokenizer"),
        (_other_architecture, "its weights differ"),
    ],
)
def test_another_base_is_refused_and_nothing_is_written(
    tmp_path, adapter, tiny_model, spoil, reason
):
    spoil(tmp_path / "other", tiny_model)
    with pytest.raises(ProtocolError, match=reason):
        load(tmp_path / "other", adapter)
    with pytest.raises(ProtocolError):
        apply(adapter, tmp_path / "out", base=tmp_path / "other")
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def altered(adapter: Path, folder: Path, change: dict[str, str]) -> Path:
    """The adapter with other facts in its header."""
    from safetensors import safe_open

    with safe_open(adapter / FILE, framework="np") as file:
        facts = file.metadata()
    folder.mkdir()
    save_file(load_file(adapter / FILE), folder / FILE, facts | change)
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"format": "2"},
        {"chain": "00" * 32},
        {"chain": "hello"},
        {"digest_before": "0" * 16},
        {"digest_after": "0" * 16},
        {"names": "{"},
        {"identity": "{}"},
    ],
    ids=str,
)
def test_a_header_that_was_altered_is_refused(tmp_path, adapter, tiny_model, change):
    spoiled = altered(adapter, tmp_path / "spoiled", change)
    with pytest.raises(ProtocolError):
        load(tiny_model, spoiled)


def test_a_later_format_of_noise_is_refused(tmp_path, adapter, tiny_model):
    text = read_adapter(adapter).identity.text.replace('"noise":1,"record"', '"noise":2,"record"')
    with pytest.raises(ProtocolError):
        load(tiny_model, altered(adapter, tmp_path / "later", {"identity": text}))


@pytest.mark.parametrize("names", ["[]", '{"change": 3}', '{"change": ["nu"]}', '{"change": [3]}'])
def test_names_that_were_altered_are_refused(tmp_path, names):
    record = replace(sample_record(0), changes={"lr": 0.5})
    path = written(Adapter(Identity(method=HiSo(), seed=0), (record,), None, 1, 2), tmp_path)
    with pytest.raises(ProtocolError):
        read_adapter(altered(path.parent, tmp_path / "spoiled", {"names": names}))


@pytest.mark.parametrize("name", ["coefficient", "pattern", "pattern.terms", "pattern.step"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "dtype", "shape"])
def test_arrays_that_were_damaged_are_refused(tmp_path, adapter, name, damage):
    from safetensors import safe_open

    with safe_open(adapter / FILE, framework="np") as file:
        facts, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    old = arrays.pop(name)
    new = {
        "cut": old[:-1],
        "changed": old + np.array(1, old.dtype),
        "missing": None,
        "dtype": old.astype(np.float64),
        "shape": old[:, None],
    }[damage]
    if new is not None:
        arrays[name] = np.ascontiguousarray(new)
    save_file(arrays, tmp_path / FILE, facts)
    with pytest.raises(ProtocolError):
        read_adapter(tmp_path)


def test_every_bit_of_the_arrays_counts(tmp_path, adapter):
    raw = (adapter / FILE).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    found = defaultdict(int)
    for at in range(start, len(raw)):
        spoiled = bytearray(raw)
        spoiled[at] ^= 1 << at % 8
        (tmp_path / FILE).write_bytes(spoiled)
        try:
            read_adapter(tmp_path)
        except ProtocolError:
            found["refused"] += 1
    assert found["refused"] == len(raw) - start


def test_a_file_that_is_cut_short_is_refused(tmp_path, adapter):
    raw = (adapter / FILE).read_bytes()
    for length in (0, 7, 8, 100, len(raw) - 1):
        (tmp_path / FILE).write_bytes(raw[:length])
        with pytest.raises(ProtocolError):
            read_adapter(tmp_path)


@pytest.mark.usefixtures("offline")
def test_what_is_not_there_is_named(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere", "./nowhere", "nobody/nothing"):
        with pytest.raises(LoadError):
            read_log(place)


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_only_what_everybody_knows_is_named_as_base(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "local").mkdir(parents=True)
    names = ["smollm2", "HuggingFaceTB/SmolLM2-135M", "gpt2"]
    assert [public_name(name) for name in names] == names
    for name in (None, "own:Llama", "/home/me/model", "./model", "~/m", "m.gguf", "org/local"):
        assert public_name(name) is None


def test_what_is_no_language_model_is_refused(tmp_path):
    torch.manual_seed(0)
    images = {"task": "digits", "model": "mlp", "clients": 2, "rounds": 1, "batch_size": 4}
    simulate(out=tmp_path / "images", **images)
    (tmp_path / "own").mkdir()
    with hiso.Federation(
        torch.nn.Linear(3, 1),
        HiSo(lr=0.1),
        loss=lambda model, batch: model(batch).square().mean(),
        shards=[[torch.ones(3)], [torch.zeros(3)]],
        batch_size=1,
        sample=1,
        directions=1,
        mu=1e-3,
        ledger=tmp_path / "own" / "ledger.sqlite",
    ) as federation:
        federation.round()
    for name in ("images", "own"):
        for export in (hiso.export_model, export_adapter):
            with pytest.raises(SettingsError):
                export(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


TASK = {"name": "text", "template": "{text}", "labels": []}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"task": TASK, "data": {"max_length": 8}},
        {"task": TASK, "model": {"fingerprint": "0"}},
        {"task": TASK, "model": {"fingerprint": "0"}, "data": []},
        {"task": {"template": "{text}"}, "model": {"fingerprint": "0"}, "data": {"max_length": 8}},
    ],
    ids=str,
)
def test_an_identity_that_lacks_something_is_refused(tmp_path, facts):
    path = written(Adapter(Identity(method=HiSo(), seed=0, **facts), (), None, 1, 2), tmp_path)
    with pytest.raises(SettingsError):
        load("smollm2", path)


def test_nothing_is_overwritten(tmp_path, run, adapter):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    exports = (
        lambda out: export_adapter(run, out),
        lambda out: hiso.export_model(run, out),
        lambda out: apply(adapter, out),
    )
    for export in exports:
        for out in (full, tmp_path / "file"):
            with pytest.raises(RunConflict):
                export(out)
        with pytest.raises(HisoError) as caught:
            export(tmp_path / "file" / "below")
        assert caught.value.exit_code in (5, 7)
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert {path.name for path in tmp_path.iterdir()} == {"full", "file"}
    empty = tmp_path / "empty"
    empty.mkdir()
    export_adapter(run, empty)
    assert read_adapter(empty).position == 6
