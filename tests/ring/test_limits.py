"""What a site refuses, whoever asks, before it computes or allocates anything."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import ProtocolError, SettingsError
from hiso.ring.client import Client
from hiso.ring.limits import Limits, Told
from hiso.ring.messages import Plan
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server

from .standin import Curved, Plain, StandIn, StandInShard, new_ledger

RULES = RoundSettings(clients=1, sample=1, steps=2, directions=3, mu=1e-3)
PLAN = Plan("00" * 32, 7, 0, (), bytes(32), 2, 3, 1e-3, "forward", 0)


def client_with(ledger, limits: Limits | None = None, told: Told | None = None, examples: int = 10):
    replica = StandIn(ledger.identity)
    return Client(0, StandInShard(0, examples), replica, replica.losses, limits=limits, told=told)


def test_a_plan_of_2_to_the_32_scalars_is_refused_before_anything_is_allocated(tmp_path):
    ledger = new_ledger(tmp_path / "ledger")
    (plan,) = Server(ledger, RULES).ask()
    client = client_with(ledger)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4294967296 scalars"):
            client.begin(replace(plan, steps=2**16, directions=2**16))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert client.told == Told()
    assert client.answer(plan).count == 6  # and it goes on


def test_what_is_refused_folds_nothing(tmp_path):
    ledger = new_ledger(tmp_path / "ledger")
    server, client = Server(ledger, RULES), client_with(ledger)
    server.tell(client.answer(server.ask()[0]))
    server.close()
    late = client_with(ledger, Limits(mu_most=1e-4))
    server.ask()
    with pytest.raises(ProtocolError, match=r"mu = 0.001 must lie in \[0, 0.0001\]"):
        late.answer(server.rejoin(0, 0))
    assert late.replica.position == 0


@pytest.mark.parametrize(("method", "count"), [(Plain(lr=0.05), 6), (Curved(lr=0.05), 12)])
def test_scalars_are_counted_as_they_travel_and_a_plan_that_comes_again_is_free(
    tmp_path, method, count
):
    ledger = new_ledger(tmp_path / "ledger", method)
    server = Server(ledger, RULES)
    client = client_with(ledger, Limits(scalars=2 * count))
    for r in range(2):
        (plan,) = server.ask()
        reply = client.answer(plan)
        assert client.answer(plan) is reply
        assert client.told == Told((r + 1) * count, r)
        server.tell(reply)
        server.close()
    (plan,) = server.ask()
    with pytest.raises(ProtocolError, match=f"beside the {2 * count} of before"):
        client.answer(plan)
    again = client_with(ledger, Limits(scalars=2 * count), client.told)
    with pytest.raises(ProtocolError, match="in all are allowed"):
        again.answer(server.rejoin(0, 0))
    with pytest.raises(ProtocolError, match="are allowed"):
        client_with(ledger, Limits(scalars_per_round=count - 1)).answer(plan)


def test_a_batch_that_would_show_single_examples_is_refused(tmp_path):
    ledger = new_ledger(tmp_path / "ledger")
    (plan,) = Server(ledger, RULES).ask()
    with pytest.raises(ProtocolError, match="batches of 3 examples"):
        client_with(ledger, Limits(batch=4), examples=3).answer(plan)
    assert client_with(ledger, Limits(batch=4), examples=4).answer(plan).count == 6


def test_a_server_that_has_rolled_back_too_far_is_refused():
    limits = Limits(position=5)

    def refused(round: int, position: int) -> bool:
        plan, told = replace(PLAN, round=round), Told(100, position)
        return bool(list(limits.problems(plan, scalars=6, batch=4, told=told)))

    assert refused(4, 5)
    assert refused(0, 9)
    assert not refused(5, 9)
    assert not refused(4, 4)  # it has not been there yet
    assert not refused(0, 0)


@given(
    scalars=st.integers(1, 100),
    before=st.integers(0, 100),
    most=st.integers(1, 100),
    in_all=st.integers(1, 200),
)
def test_a_plan_is_refused_exactly_where_a_limit_is_passed(scalars, before, most, in_all):
    limits = Limits(scalars_per_round=most, scalars=in_all)
    told = Told(before, 3)
    problems = list(limits.problems(PLAN, scalars=scalars, batch=1, told=told))
    assert len(problems) == (scalars > most) + (before + scalars > in_all)


def test_limits_that_allow_nothing_name_all_their_problems():
    with pytest.raises(SettingsError) as caught:
        Limits(scalars_per_round=0, scalars=float("nan"), mu_least=2.0, mu_most=1.0, batch=0)
    for name in ("scalars_per_round = 0", "scalars = nan", "mu_most = 1.0", "batch = 0"):
        assert name in str(caught.value)
