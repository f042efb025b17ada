"""What of a model is trained: adapters of PEFT, or a part of its own parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hiso import evaluate_run, export_adapter, load, open_run, simulate
from hiso.core.identity import Identity
from hiso.core.keys import raw_bits
from hiso.errors import LoadError, ProtocolError, RunConflict, SettingsError
from hiso.export.out import apply
from hiso.ring.ledger.ledger import Ledger
from hiso.run.identity import settings_identity
from hiso.run.launch import estimate_run
from hiso.run.settings import parse_settings
from hiso.workloads.text import trained
from hiso.workloads.text.choice import Choice
from hiso.workloads.text.models import load_model
from hiso.workloads.text.trained import choose, finish

from ..tiny import save_classifier, save_model

pytestmark = pytest.mark.usefixtures("one_thread")
pytest.importorskip("peft")
LORA = Choice(kind="lora", rank=4, alpha=8, targets=("q_proj", "down_proj"))
BLOCK = 9_280
"""Weights of a block of the tiny Llama."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random models by name."""
    folder = tmp_path_factory.mktemp("models")
    found = {kind: save_model(folder / kind, kind) for kind in ("llama", "gpt2", "opt")}
    heads = {f"{kind}-head": save_classifier(folder / f"{kind}-head", kind) for kind in CLASSIFIERS}
    return found | heads


CLASSIFIERS = ("bert", "distilbert", "llama")


def trainable(model) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def chosen(folder, choice: Choice, seed: int = 0):
    lm = load_model(str(folder))
    choose(lm, choice, seed)
    return lm


def test_the_identity_of_a_full_run_is_what_it_was(tmp_path, base):
    settings = parse_settings({"method": "hiso"})
    assert settings_identity(settings, settings.make_method(), 2).text == (
        '{"batch_size":16,"clients":6,"directions":"shared","dtype":"float32","formats":{"noise":1,'
        '"record":1},"method":{"feed":"first","hyper":{"eps":1e-08,"floor":0.25,"lr":0.0003,'
        '"nu":0.05},"name":"hiso"},"noise":"binomial","seed":0}'
    )
    digests = [
        simulate(out=tmp_path / name, **base, **more)["digest"]
        for name, more in {"plain": {}, "full": {"train": "full"}}.items()
    ]
    assert digests[0] == digests[1]
    with Ledger.read(tmp_path / "full" / "ledger.sqlite") as ledger:
        assert set(ledger.facts["model"]) == {"fingerprint"}


@pytest.mark.parametrize(
    ("model", "kind", "count"),
    [
        ("llama", "norm", 5 * 32),
        ("llama", "head", 400 * 32),
        ("llama", "last-1", BLOCK),
        ("llama", "last-2", 2 * BLOCK),
        ("llama", r"regex:layers\.0\.mlp", 3 * 32 * 64),
        ("llama", "regex:", 44_192),
        ("llama", "ia3", 2 * (16 + 16 + 64)),
        ("gpt2", "norm", 5 * 2 * 32),
        ("gpt2", "bias", 2 * (32 + 96 + 32 + 32 + 128 + 32) + 32),
        ("gpt2", "regex:lm_head", 400 * 32),
        ("bert-head", "head", 2 * 32 + 2),
        ("distilbert-head", "head", 32 * 32 + 32 + 2 * 32 + 2),
        ("llama-head", "norm", 5 * 32 + 2 * 32),
        ("llama-head", "ia3", 2 * (16 + 16 + 64) + 2 * 32),
        ("llama-head", r"regex:model\.norm", 32),
    ],
)
def test_what_each_kind_trains(folders, model, kind, count):
    """A classification head is trained beside all that is named by a word."""
    lm = chosen(folders[model], Choice(kind=kind))
    assert sum(p.numel() for p in trainable(lm.model).values()) == count


def test_the_last_blocks_are_the_last(folders):
    names = trainable(chosen(folders["llama"], Choice(kind="last-1")).model)
    assert {name.rpartition(".layers.")[2][0] for name in names} == {"1"}


def test_adapters_begin_as_a_function_of_the_seed_alone(folders):
    """A is uniform in ±1/√inputs from the run's keys; B is 0, so that the model is the base."""
    ids = torch.tensor([[5, 6, 7]])
    base = load_model(str(folders["llama"])).model
    torch.manual_seed(1)
    state = torch.get_rng_state()
    lm = chosen(folders["llama"], LORA, seed=7)
    assert torch.equal(torch.get_rng_state(), state)
    a = [p for name, p in trainable(lm.model).items() if "lora_A" in name]
    b = [p for name, p in trainable(lm.model).items() if "lora_B" in name]
    assert [p.shape for p in a] == 2 * [(4, 32), (4, 64)]
    for number, p in enumerate(a):
        bits = raw_bits(7, "lora", (number,), p.numel()).astype(np.float64)
        expected = (bits / 2.0**64 * 2 - 1) / math.sqrt(p.shape[1])
        assert np.array_equal(p.detach().numpy().ravel(), expected.astype(np.float32))
    golden = [0.04558251053094864, 0.10065602511167526, 0.09230223298072815]
    assert a[0].detach().ravel()[:3].tolist() == golden
    assert not any(p.any() for p in b)
    with torch.no_grad():
        assert torch.equal(lm.model(input_ids=ids).logits, base(input_ids=ids).logits)


RUNS = [
    {"train": "lora"},
    {"train": "lora", "lora_rank": 2, "lora_alpha": 3, "lora_targets": "q_proj, down_proj"},
    {"train": "lora", "lora_targets": "all-linear", "memory": "lean"},
    {"train": "lora", "dtype": "bfloat16", "mu": 0.005},
    {"train": "lora", "backward_clients": 4},
    {"train": "ia3"},
    {"train": "norm", "dtype": "bfloat16", "mu": 0.01, "memory": "lean"},
    {"train": "last-1", "method": "subspace_newton", "lr": 0.5, "label_bias": True},
    {"train": "head"},
    {"train": "regex:q_proj|norm"},
]


@pytest.mark.parametrize("more", RUNS, ids=lambda more: "-".join(map(str, more.values())))
def test_whatever_makes_the_model_again_makes_the_same(tmp_path, base, tiny_model, more):
    """Evaluation, resumption, replay, adapter; and what was frozen is that of the base model."""
    out, given = tmp_path / "run", {**base, **more}
    simulate(out=out, **given | {"rounds": 3})
    summary = simulate(out=out, change={"rounds": 6}, **{**given, "rounds": 3})
    assert simulate(out=tmp_path / "whole", **given)["digest"] == summary["digest"]
    told = evaluate_run(out)
    assert (told["digest"], told["accuracy"]) == (summary["digest"], summary["accuracy_after"])
    mine = open_run(out).model.state_dict()
    export_adapter(out, tmp_path / "adapter")
    tuned = load(tiny_model, tmp_path / "adapter", keep_base=True)
    assert f"{tuned.digest:016x}" == summary["digest"]
    assert all(p.requires_grad for p in tuned.model.parameters())
    assert tuned.base is not None
    before, after = tuned.base.model.state_dict(), tuned.model.state_dict()
    assert all(torch.equal(mine[name], tensor) for name, tensor in after.items())
    assert before.keys() == after.keys() == mine.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    choice = parse_settings(given).make_choice()
    lm = load_model(str(tiny_model))
    choose(lm, choice, 0)
    wanted = {name.rpartition("_proj")[0] for name in trainable(lm.model)}
    if choice.adapts:
        assert moved
        assert {name.rpartition("_proj")[0] for name in moved} <= wanted
    else:
        assert moved == set(trainable(lm.model))


@pytest.mark.parametrize("model", ["gpt2", "bert-head", "llama-head"])
@pytest.mark.parametrize("train", ["lora", "norm"])
def test_half_precision_takes_every_kind_of_model(tmp_path, base, folders, model, train):
    given = base | {"model": str(folders[model]), "dtype": "bfloat16", "mu": 0.02, "rounds": 2}
    summary = simulate(out=tmp_path / "run", **given, train=train)
    assert evaluate_run(tmp_path / "run")["digest"] == summary["digest"]


def test_lean_and_full_memory_give_the_same_bits(tmp_path, base):
    digests = {
        simulate(out=tmp_path / memory, **base, train="lora", memory=memory)["digest"]
        for memory in ("full", "lean")
    }
    assert len(digests) == 1


def test_adapters_are_small_and_the_cards_say_what_was_trained(tmp_path, base, tiny_model):
    import json

    summary = simulate(out=tmp_path / "run", **base, train="lora", lora_rank=2)
    assert summary["trainable_weights"] == 2 * 2 * (32 + 32 + 32 + 16)
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    card = json.loads((tmp_path / "adapter" / "hiso_adapter.json").read_text())
    assert card["train"] == {"kind": "lora", "rank": 2, "alpha": 64}
    assert card["base"]["targets"] == ["q_proj", "v_proj"]
    apply(tmp_path / "adapter", tmp_path / "model", base=tiny_model)
    told = (tmp_path / "model" / "README.md").read_text()
    assert "`lora` (rank 2, alpha 64, q_proj, v_proj)" in told


def test_a_merge_gives_the_scores_of_the_adapters(folders):
    lm = chosen(folders["llama"], LORA)
    torch.manual_seed(0)
    for p in trainable(lm.model).values():
        p.data.normal_(std=0.1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = lm.model(input_ids=ids).logits
        finish(lm.model, LORA)
        after = lm.model(input_ids=ids).logits
    assert torch.allclose(after, before, atol=1e-4)
    assert (
        lm.model.state_dict().keys() == load_model(str(folders["llama"])).model.state_dict().keys()
    )


def test_frozen_weights_have_the_precision_of_the_passes(tmp_path, base):
    from hiso.run.observer import Silent
    from hiso.run.workload.base import make_replica
    from hiso.run.workload.load import load_workload

    settings = parse_settings(base | {"train": "lora", "dtype": "bfloat16"})
    workload = load_workload(settings, settings.make_method(), Silent())
    replica = make_replica(workload.identity, workload, "full", Silent())
    assert {p.dtype for p in workload.module.parameters()} == {torch.bfloat16}
    assert replica.numel == sum(p.numel() for p in trainable(workload.module).values())


def test_estimates_know_what_is_trained(tmp_path, base):
    given = base | {"snapshot_every": 3, "dtype": "float32"}
    full, lora = (
        estimate_run(given | more, tmp_path / "run").disk_bytes for more in ({}, {"train": "lora"})
    )
    assert lora < full


def test_a_worker_trains_what_the_simulation_does(tmp_path, base):
    pytest.importorskip("flwr")
    from hiso.flower.envelope import Envelope, split
    from hiso.flower.rounds import differences
    from hiso.flower.worker import Worker
    from hiso.ring.server import Server
    from hiso.ring.wire import plan_to_bytes, reply_from_bytes

    given = base | {"eval_every": 0, "joint": False, "train": "lora"}
    expected = simulate(out=tmp_path / "run", **given)
    settings, folder = parse_settings(given), tmp_path / "worker"
    folder.mkdir()
    (folder / "site.toml").write_text('batches = "seed"\n')
    worker = Worker(settings, folder, own=None, alive=lambda: None)
    hello = worker.hello([0], None).facts
    assert hello["weights"] == expected["trainable_weights"]
    method, identity = settings.make_method(), Identity.parse(hello["identity"])
    for other, same in ({}, True), ({"train": "full"}, False), ({"lora_rank": 4}, False):
        theirs = parse_settings(given | other)
        told = differences(lambda labels, s=theirs: settings_identity(s, method, labels), identity)
        assert ("train" not in told) == same
    with Ledger.create(tmp_path / "ledger", identity, {}) as ledger:
        server = Server(ledger, settings.make_rounds(method))
        while ledger.position < base["rounds"]:
            for plan in server.ask():
                request = Envelope("round", {"identity": identity.text}, plan_to_bytes(plan))
                answer = worker.handle(request, [plan.client])
                assert server.tell(reply_from_bytes(*split(answer.body))).accepted
            server.close()
        rest = server.rest(0, worker.position)
    folded = worker.handle(Envelope("fold", {"identity": identity.text}, plan_to_bytes(rest)), [0])
    worker.close()
    assert folded.facts["digest"] == expected["digest"]


def test_another_choice_is_another_run(tmp_path, base):
    simulate(out=tmp_path / "run", **base | {"rounds": 2}, train="norm")
    for more in ({"train": "full"}, {"train": "lora"}):
        with pytest.raises(RunConflict, match="train"):
            simulate(out=tmp_path / "run", **base | more | {"rounds": 2})
    with pytest.raises(RunConflict, match="train"):
        simulate(out=tmp_path / "run", change={"train": "full"})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train": "lorra"}, "one of full, lora"),
        ({"train": "last-0"}, "last-N"),
        ({"train": "regex:("}, "regular expression"),
        ({"lora_rank": 4}, "lora_rank: for train = lora"),
        ({"train": "norm", "lora_targets": "q_proj"}, "lora_targets: for train = lora"),
        ({"train": "lora", "lora_rank": 0}, "lora_rank"),
    ],
)
def test_settings_that_are_wrong_say_so(more, words):
    with pytest.raises(SettingsError, match=words):
        parse_settings(more)


@pytest.mark.parametrize(
    ("model", "choice", "words"),
    [
        ("llama", Choice(kind="bias"), "no parameter"),
        ("llama", Choice(kind="regex:lora"), "no parameter"),
        ("llama", Choice(kind="last-3"), "has 2 blocks"),
        ("gpt2", Choice(kind="head"), r"regex:transformer\\.wte\\.weight"),
        ("llama", Choice(kind="lora", targets=("query",)), "q_proj"),
        ("llama", Choice(kind="lora", targets=("q_proj", "query")), "no layer is called query"),
        ("llama", Choice(kind="lora", targets=("q_proj", "lm_head")), "output head"),
        ("llama", Choice(kind="lora", targets=("embed_tokens",)), "no linear layer"),
        ("llama-head", Choice(kind="lora", targets=("score",)), "output head"),
        ("distilbert-head", Choice(kind="lora"), "lora_targets"),
    ],
)
def test_what_a_model_does_not_have_is_refused(folders, model, choice, words):
    with pytest.raises(SettingsError, match=words):
        chosen(folders[model], choice)


def test_lean_memory_does_not_do_for_ia3(tmp_path, base):
    with pytest.raises(SettingsError, match="memory = full"):
        simulate(out=tmp_path / "run", **base, train="ia3", memory="lean")


def test_networks_on_images_are_trained_in_full(tmp_path):
    with pytest.raises(SettingsError, match="in full"):
        simulate(out=tmp_path / "run", task="digits", model="mlp", train="norm")


def test_without_peft_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr(trained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"hiso\[lora\]"):
        chosen(folders["llama"], LORA)


def test_a_choice_survives_an_identity():
    facts = {"train": {"kind": "lora", "rank": 4, "alpha": 8}}
    assert Choice.of(facts, {"targets": ["q_proj", "down_proj"]}) == LORA
    assert LORA.facts["train"] == facts["train"] | {"targets": ["q_proj", "down_proj"]}
    assert Choice.of({}, {"fingerprint": ""}) == Choice()
    for odd in ({"kind": "dora"}, {"kind": "lora", "depth": 3}):
        with pytest.raises(SettingsError):
            Choice.of({"train": odd}, {})


def test_an_adapter_of_another_choice_is_not_taken(tmp_path, base, folders):
    simulate(out=tmp_path / "run", **base | {"rounds": 1}, train="lora")
    export_adapter(tmp_path / "run", tmp_path / "adapter")
    with pytest.raises(ProtocolError, match="not the base model"):
        load(str(folders["opt"]), tmp_path / "adapter")


@pytest.mark.parametrize(
    "more", [{}, {"per_client": True}, {"local_steps": 2}, {"scheme": "central"}], ids=str
)
def test_directions_that_share_a_pass_give_the_same_scalars_up_to_rounding(tmp_path, base, more):
    given = base | {"train": "lora", "rounds": 2, "directions": 3, "mu": 1e-2} | more
    logs: list[list[np.ndarray]] = []
    for together in (False, True):
        out = tmp_path / str(together)
        simulate(out=out, joint_directions=together, **given)
        with Ledger.read(out / "ledger.sqlite") as ledger:
            logs.append([record.coefficient for record in ledger.records()])
            assert ("joint_directions" in ledger.facts) == together
    for one, other in zip(*logs, strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, atol=1e-2 * np.abs(one).max())
    with pytest.raises(RunConflict, match="joint_directions"):
        simulate(out=tmp_path / "True", joint_directions=False, **given | {"rounds": 3})


def test_shared_passes_of_directions_need_lora(tmp_path, base):
    for more in ({}, {"train": "ia3"}, {"train": "lora", "memory": "lean"}):
        with pytest.raises(SettingsError, match="joint_directions"):
            simulate(out=tmp_path / "run", joint_directions=True, **base | more)


@pytest.mark.parametrize("frozen", ["int8", "nf4"])
def test_a_run_on_quantised_layers_goes_on_and_is_exported(tmp_path, base, frozen):
    pytest.importorskip("bitsandbytes")
    given = base | {"train": "lora", "frozen": frozen, "rounds": 3, "eval_every": 0}
    whole = simulate(out=tmp_path / "whole", **given)
    simulate(out=tmp_path / "parts", **given | {"rounds": 2})
    parts = simulate(out=tmp_path / "parts", change={"rounds": 3})
    assert parts["digest"] == whole["digest"]
    assert evaluate_run(tmp_path / "whole")["digest"] == whole["digest"]
    with pytest.raises(RunConflict, match="frozen"):
        simulate(out=tmp_path / "whole", **given | {"rounds": 4, "frozen": "dtype"})
    export_adapter(tmp_path / "whole", tmp_path / "adapter")
    tuned = load(base["model"], tmp_path / "adapter")  # merged into the float32 base
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters())


def test_quantised_layers_need_frozen_layers(tmp_path, base):
    for more in ({}, {"train": "lora", "memory": "lean"}):
        with pytest.raises(SettingsError, match="frozen"):
            simulate(out=tmp_path / "run", frozen="int8", **base | more)
