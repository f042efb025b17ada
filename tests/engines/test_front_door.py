"""hiso.Federation and hiso.replay, beside the same made by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import hiso
from hiso.core.fingerprint import fingerprint
from hiso.core.keys import choose
from hiso.core.method.base import Method
from hiso.core.method.registry import HiSo, HiZoo, Momentum, SubspaceNewton, ZoSgd
from hiso.core.replica.replica import Replica
from hiso.engines.simulation import Simulation
from hiso.errors import Diverged, HisoError, ProtocolError, RunConflict, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server

pytestmark = pytest.mark.usefixtures("one_thread")
CLIENTS, SIZE = 4, 20


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """x float32 [SIZE, 3] and y int64 [SIZE] of each client."""
    made = torch.Generator().manual_seed(1)
    xs = [torch.randn(SIZE, 3, generator=made) for _ in range(CLIENTS)]
    return [(x, (x[:, 0] > x[:, 1]).long()) for x in xs]


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def scores(model: nn.Module, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model(batch[0]), batch[1]


def halved(model: nn.Module, batch: Any) -> torch.Tensor:
    return cross_entropy(model(batch[0].bfloat16()).float(), batch[1])


def arguments(**other: Any) -> dict[str, Any]:
    return {
        "loss": loss,
        "shards": [TensorDataset(*pair) for pair in data()],
        "batch_size": 8,
        "sample": 2,
        "directions": 3,
        "mu": 1e-2,
    } | other


def federation(method: Method | None = None, **other: Any) -> hiso.Federation:
    return hiso.Federation(network(), method or HiSo(lr=0.05), **arguments(**other))


class Shard:
    """The same by hand."""

    examples = SIZE

    def __init__(self, client: int) -> None:
        self.client, self.data = client, data()[client]

    def batch(self, round: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rows = choose(5, "batch", self.client, round, step, size=SIZE, count=8)
        return self.data[0][rows], self.data[1][rows]


@pytest.mark.parametrize(
    ("method", "options", "rules"),
    [
        (HiSo(lr=0.05), {}, {}),
        (HiZoo(lr=0.05), {"local_steps": 2, "per_client": True}, {"steps": 2, "per_client": True}),
        (Momentum(lr=0.01), {"scheme": "central", "weighting": "examples"}, {"scheme": "central"}),
        (ZoSgd(lr=0.05), {"normalise": 0.05}, {"normalise": 0.05, "hyper": {"lr": 0.05}}),
        (SubspaceNewton(), {"loss": scores}, {}),
        (
            ZoSgd(lr=0.05),
            {"noise": "gaussian", "dtype": "bfloat16", "loss": halved, "memory": "lean"},
            {},
        ),
    ],
    ids=["hiso", "hizoo", "momentum", "normalise", "newton", "lean"],
)
def test_the_federation_is_the_loop_made_by_hand(tmp_path, method, options, rules):
    with federation(method, seed=5, **options) as fed:
        rounds = list(fed.rounds(6))
    noise, dtype = options.get("noise", "binomial"), options.get("dtype", "float32")
    identity = hiso.Identity(method=method, seed=5, batch_size=8, noise=noise, dtype=dtype)
    with Ledger.create(tmp_path / "by hand", identity, {}) as ledger:
        replica = Replica(network(), identity)
        settings = RoundSettings(
            **{"clients": CLIENTS, "sample": 2, "steps": 1, "directions": 3, "mu": 1e-2} | rules
        )
        each = options.get("loss", loss)

        @torch.no_grad()
        def losses(batches: Any) -> list[Any]:
            return [each(replica.module, batch) for batch in batches]

        simulation = Simulation(
            Server(ledger, settings), replica, [Shard(i) for i in range(CLIENTS)], losses
        )
        expected = [simulation.round() for _ in range(6)]
    assert fed.digest == replica.digest()
    assert [(r.number, r.loss, r.clients) for r in rounds] == [
        (number, r.loss, r.clients) for number, r in enumerate(expected)
    ]
    trained = replica.release().state_dict()
    assert all(torch.equal(fed.model.state_dict()[name], trained[name]) for name in trained)


def test_the_federation_learns_and_gives_an_ordinary_module_back():
    with federation(HiSo(lr=0.1), directions=8) as fed:
        losses = [r.loss for r in fed.rounds(60)]
        assert fed.replica.digest() == fed.digest
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    fed.close()
    optimiser = torch.optim.SGD(fed.model.parameters(), lr=0.1)
    loss(fed.model, data()[0]).backward()
    optimiser.step()
    for more in (fed.round, lambda: list(fed.rounds(100))):
        with pytest.raises(RuntimeError, match="closed"):
            more()


def test_a_run_goes_on_where_it_was_and_does_no_more_than_it_is_told(tmp_path):
    whole = federation(ledger=tmp_path / "whole")
    list(whole.rounds(8))
    whole.close()
    for until in (3, 3, 8):
        with federation(ledger=tmp_path / "a" / "parts") as fed:
            list(fed.rounds(until))
            assert fed.replica.position == fed.ledger.position == until
    assert fed.digest == whole.digest


@pytest.mark.parametrize("kind", [loss, scores], ids=["loss", "scores"])
def test_a_mixed_fleet_makes_a_run_like_any_other(tmp_path, kind):
    """Half by backward passes, then none, then all: one run, whose digest a late joiner gets."""
    path = tmp_path / "ledger"
    for probe, until in ((["backward", "forward"] * 2, 4), ("forward", 6), ("backward", 8)):
        with federation(ledger=path, loss=kind, probe=probe, local_steps=2) as fed:
            rounds = list(fed.rounds(until))
            run, digest = fed.ledger.run, fed.digest
    with federation(loss=kind, local_steps=2) as plain:
        expected = list(plain.rounds(8))
        assert plain.ledger.run == run
    assert rounds[-1].loss == pytest.approx(expected[-1].loss, rel=0.02)
    assert hiso.replay(path, network()).digest() == digest


@pytest.mark.parametrize(
    "odd",
    [
        {"probe": ["backward"]},
        {"probe": "sideways"},
        {"probe": "backward", "memory": "lean"},
        {"probe": "backward", "method": HiZoo()},
        {"probe": "backward", "method": SubspaceNewton(), "loss": scores},
        {"probe": "backward", "method": hiso.auto_lr(HiSo()), "loss": scores},
        {"probe": "backward", "loss": lambda m, b: loss(m, b).item()},
    ],
    ids=["one of four", "no such", "lean", "curvature", "scores", "auto", "no gradient"],
)
def test_who_cannot_answer_by_backward_passes_is_told_so(tmp_path, odd):
    with pytest.raises(SettingsError, match=r"backward|probe"):
        federation(ledger=tmp_path / "ledger", **odd)
    assert not (tmp_path / "ledger").exists()


CRASH = """
import os, sys
from pathlib import Path
from tests.engines.test_front_door import federation
fed = federation(ledger=Path(sys.argv[1]))
for r in fed.rounds(8):
    if r.number == 4:
        os._exit(9)
"""


def test_a_killed_process_costs_nothing(tmp_path):
    with federation() as whole:
        list(whole.rounds(8))
    script = [sys.executable, "-c", CRASH, str(tmp_path / "ledger")]
    done = subprocess.run(script, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 9
    with federation(ledger=tmp_path / "ledger") as fed:
        assert fed.ledger.position == 5
        list(fed.rounds(8))
    assert fed.digest == whole.digest


def test_an_interrupted_round_is_measured_anew(tmp_path):
    calls = []

    def flaky(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return loss(model, batch)

    with federation() as whole:
        list(whole.rounds(4))
    named = {"loss_name": "loss", "ledger": tmp_path / "ledger"}
    with pytest.raises(KeyboardInterrupt), federation(loss=flaky, **named) as fed:
        list(fed.rounds(4))
    with federation(**named) as fed:
        assert 0 < fed.ledger.position < 4
        list(fed.rounds(4))
    assert fed.digest == whole.digest


@pytest.mark.parametrize(
    ("other", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"loss_version": 2}, "loss.version"),
        ({"loss": scores}, "loss.name"),
        ({"batch_size": 4}, "batch_size"),
        ({"shards": [[(torch.ones(3), 1)] * 9] * 5}, "clients"),
        ({"per_client": True}, "directions"),
        ({"noise": "gaussian"}, "noise"),
        ({"mu": 1e-3}, "mu"),
        ({"sample": 3}, "sample"),
        ({"scheme": "central"}, "scheme"),
        ({"method": HiSo(lr=0.5)}, "method.hyper.lr"),
        ({"method": ZoSgd(lr=0.05)}, "method"),
        ({"model": nn.Linear(3, 2)}, "model.module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_ledger_of_another_run_is_refused_and_stays_as_it_is(tmp_path, other, key):
    path = tmp_path / "ledger"
    with federation(ledger=path) as fed:
        list(fed.rounds(2))
    before = path.read_bytes()
    model, method = other.pop("model", network()), other.pop("method", HiSo(lr=0.05))
    with pytest.raises(RunConflict, match=rf"(?m)^  {key}: "):
        hiso.Federation(model, method, **arguments(ledger=path, **other))
    assert path.read_bytes() == before
    assert model.train() is model
    with federation(ledger=path) as fed:  # the model was not kept either
        assert fed.ledger.position == 2


def test_a_trained_model_is_no_base_model(tmp_path):
    with federation(ledger=tmp_path / "ledger") as fed:
        list(fed.rounds(2))
    with pytest.raises(RunConflict, match=r"model\.module"):
        hiso.Federation(fed.model, HiSo(lr=0.05), **arguments(ledger=tmp_path / "ledger"))
    with pytest.raises(RunConflict):
        hiso.replay(tmp_path / "ledger", fed.model)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    wrong = {
        "loss": 3,
        "shards": [[], (1, 2), {"train": [1]}, [1]],
        "batch_size": 0,
        "sample": 9,
        "directions": True,
        "mu": "small",
        "seed": -1,
        "scheme": "backwards",
        "normalise": 4.0,
        "ledger": tmp_path,
        "loss_version": 1.5,
        "backend": "cuda",
    }
    with pytest.raises(SettingsError) as caught:
        hiso.Federation("gpt2", HiSo, **arguments(**wrong))  # type: ignore[arg-type]
    lines = str(caught.value).splitlines()
    starts = ["model", "method", "loss", "shards", "batch_size", "directions", "mu", "scheme"]
    starts += ["ledger", "loss_version", "backend", "round settings", "identity"]
    assert sorted(line.strip().replace(":", " ").split(" ")[0] for line in lines[1:]) == sorted(
        start.split(" ")[0] for start in starts
    )
    for part in ("client 0", "client 1", "client 2", "sample = 9", "normalise = 4", "seed = -1"):
        assert part in str(caught.value)
    assert "client 3" not in str(caught.value)


def random_dataset() -> Any:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield 1

    return Stream()


@pytest.mark.parametrize(
    "shards",
    [
        [],
        TensorDataset(torch.ones(3, 3)),
        torch.ones(3, 3),
        {"a": [1]},
        [(torch.ones(3), 1)],
        [torch.ones(3, 3)],
        [torch.utils.data.DataLoader([1, 2])],
        [random_dataset()],
        [iter([1])],
        ["text"],
    ],
    ids=lambda value: type(value[0] if isinstance(value, list) and value else value).__name__,
)
def test_what_is_no_list_of_shards_is_refused(shards):
    with pytest.raises(SettingsError, match="shards: "):
        federation(shards=shards, sample=1)


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (HiSo(), lambda model, batch: None),
        (HiSo(), lambda model, batch: {"loss": 1.0}),
        (HiSo(), lambda model, batch: model(batch[0])),
        (SubspaceNewton(), loss),
    ],
    ids=["nothing", "dict", "scores alone", "no scores"],
)
def test_a_loss_of_the_wrong_kind_is_refused_before_anything_is_written(tmp_path, method, wrong):
    model = network()
    with pytest.raises(SettingsError):
        hiso.Federation(model, method, **arguments(loss=wrong, ledger=tmp_path / "ledger"))
    assert list(tmp_path.iterdir()) == []
    with hiso.Federation(model, HiSo(lr=0.05), **arguments()):  # the model was given back
        pass


def test_a_diverging_run_keeps_its_good_rounds(tmp_path):
    with (
        pytest.raises(Diverged),
        federation(ZoSgd(lr=1e3), ledger=tmp_path / "ledger", divergence_factor=1.01) as fed,
    ):
        list(fed.rounds(100))
    with Ledger.read(tmp_path / "ledger") as ledger:
        assert ledger.position < 100
        ledger.verify()


def test_a_schedule_is_in_the_log(tmp_path):
    path = tmp_path / "ledger"
    with federation(ledger=path) as fed:
        for r in fed.rounds(6):
            if r.number == 2:
                fed.server.settings = replace(fed.server.settings, mu=1e-3, hyper={"lr": 0.01})
    with federation(ledger=path) as again:  # the rate of the log stays in force
        assert again.replica.hyper["lr"] == pytest.approx(0.01)
        again.round()
    assert hiso.replay(path, network()).digest() == again.digest


@dataclass(frozen=True, kw_only=True)
class Shrinking(Method):
    """A method of one's own, which is registered nowhere."""

    name: ClassVar[str] = "shrinking"
    decay: float = 0.1

    def step(self, w, state, dx, hyper):
        return w - hyper["lr"] * (dx + hyper["decay"] * w), {}


def test_a_late_joiner_has_the_same_bits_at_every_position(tmp_path):
    path, digests = tmp_path / "ledger", []
    with federation(Shrinking(lr=0.05), ledger=path, local_steps=2) as fed:
        digests.append(fed.digest)
        for _ in fed.rounds(5):
            digests.append(fed.digest)
            late = hiso.replay(path, network(), method=Shrinking)  # while the run goes on
            assert late.digest() == fed.digest
    for position, digest in enumerate(digests):
        late = hiso.replay(path, network(), position=position, method=Shrinking, memory="lean")
        assert (late.position, late.digest()) == (position, digest)
    full = hiso.replay(path, network(), method=Shrinking)
    trained = fed.model.state_dict()
    assert all(torch.equal(full.module.state_dict()[name], trained[name]) for name in trained)


def test_a_replay_that_is_not_the_run_is_refused(tmp_path):
    path = tmp_path / "ledger"
    with federation(ledger=path) as fed:
        list(fed.rounds(3))
    for wrong, kind in [
        ({"position": 4}, ProtocolError),
        ({"position": -1}, ProtocolError),
        ({"model": nn.Linear(3, 2)}, RunConflict),
        ({"ledger": tmp_path / "none"}, ProtocolError),
    ]:
        given = {"ledger": path, "model": network()} | wrong
        with pytest.raises(kind):
            hiso.replay(given.pop("ledger"), given.pop("model"), **given)


def test_the_digest_finds_another_base_model_where_the_ledger_has_no_fingerprint(tmp_path):
    identity = hiso.Identity(method=ZoSgd(lr=0.1), seed=0, model="toy")
    with Ledger.create(tmp_path / "l", identity, {}) as ledger:
        rules = RoundSettings(clients=1, sample=1, steps=1, directions=2, mu=1e-2)
        replica = Replica(network(), identity)
        simulation = Simulation(
            Server(ledger, rules), replica, [Shard(0)], lambda bs: [loss(replica.module, bs[0])]
        )
        simulation.round()
    assert hiso.replay(tmp_path / "l", network()).digest() == replica.digest()
    other = network()
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1
    with pytest.raises(ProtocolError):
        hiso.replay(tmp_path / "l", other)


def test_a_fingerprint_sees_weights_buffers_and_what_is_trained():
    def made(change=lambda module: None) -> str:
        module = nn.Sequential(network(), nn.BatchNorm1d(2))
        with torch.no_grad():
            change(module)
        return fingerprint(module)

    changes = [
        lambda m: m[0][0].weight[0, 0].add_(1e-6),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m[0][0].weight.requires_grad_(False),
        lambda m: m.to(torch.bfloat16),
    ]
    assert made() == made()
    assert len({made(), *map(made, changes)}) == 5


def test_errors_have_one_root():
    assert issubclass(SettingsError, HisoError)
    assert issubclass(RunConflict, hiso.HisoError)
