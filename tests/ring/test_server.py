from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hiso.errors import Diverged, ProtocolError, SettingsError
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan, Reply
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Aborted, Closed, Server
from hiso.ring.wire import hash_question

from .standin import Curved, Plain, clients_of, new_ledger, one_round

RULES = RoundSettings(clients=5, sample=3, steps=2, directions=2, mu=1e-3)


@dataclass
class Open:
    """A server in the middle of a round, and a reply that it would take."""

    server: Server
    clients: list[Client]
    plans: list[Plan]
    good: Reply


def open_round(path: Path, method: type[Plain | Curved] = Plain) -> Open:
    ledger = new_ledger(path, method(lr=0.05))
    clients = clients_of(ledger, 5)
    server = Server(ledger, RULES)
    one_round(server, clients)
    plans = server.ask()
    server.tell(clients[plans[0].client].answer(plans[0]))
    return Open(server, clients, plans, clients[plans[1].client].answer(plans[1]))


@pytest.fixture
def opened(tmp_path):
    return open_round(tmp_path / "ledger.db")


def content(path: Path) -> list[str]:
    """All that the ledger's file holds, but for the log of refused replies."""
    with closing(sqlite3.connect(path)) as db:
        return [line for line in db.iterdump() if 'INTO "refusals"' not in line]


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=70),
    st.binary(max_size=40),
    st.lists(st.floats(), max_size=3),
    hnp.arrays(
        st.one_of(hnp.scalar_dtypes(), st.just(np.dtype("f4"))),
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=3),
    ),
    st.sampled_from([-1, 2**64, 2**70, np.int64(1), np.float32(1), 1e39, "\ud800", np.ma.masked]),
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return open_round(tmp_path_factory.mktemp("malformed") / "ledger.db", Curved)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(field=st.sampled_from([f.name for f in fields(Reply)]), value=anything)
@example(field="examples", value=True)
@example(field="loss", value=float("nan"))
def test_a_malformed_reply_changes_nothing(shared, field, value):
    good = shared.good
    valid = {
        "digest": type(value) is int and 0 <= value < 2**64,
        "examples": type(value) is int and 1 <= value <= 2**53,
        "loss": value is None
        or (isinstance(value, float) and abs(value) <= float(np.finfo(np.float32).max)),
        "client": type(value) is int and value == shared.plans[2].client,
        "round": type(value) is int and value == good.round,
    }.get(field, False)
    if field in ("scalars", "curvature") and isinstance(value, np.ndarray):
        valid = value.dtype == np.float32 and value.shape == (2, 2) and np.isfinite(value).all()
    if valid:
        return
    before, refused = content(shared.server.ledger.path), len(shared.server.ledger.refusals())
    verdict = shared.server.tell(replace(good, **{field: value}))
    assert not verdict.accepted
    assert field in verdict.reason
    assert len(verdict.reason) < 400
    assert content(shared.server.ledger.path) == before
    assert shared.server.ledger.refusals()[-1][2] == verdict.reason
    assert len(shared.server.ledger.refusals()) == refused + 1
    assert good.client not in shared.server._replies


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("examples", 1, True),
        ("examples", 2**53, True),
        ("examples", 2**53 + 1, False),
        ("examples", 0, False),
        ("digest", 2**64 - 1, True),
        ("digest", 2**64, False),
        ("loss", float(np.finfo(np.float32).max), True),
        ("loss", 3.5e38, False),
        ("scalars", np.ones((2, 2), np.float64), False),
        ("scalars", np.ones((2, 1), np.float32), False),
        ("scalars", np.ones((2, 3), np.float32), False),
        ("scalars", np.ones((1, 9), np.float32), False),
        ("asked", bytes(32), False),
    ],
)
def test_bounds_of_a_reply(opened, field, value, accepted):
    assert opened.server.tell(replace(opened.good, **{field: value})).accepted is accepted


def test_a_question_is_compared_by_value(opened):
    good = replace(opened.good, asked=bytes(bytearray(opened.good.asked)))
    assert good.asked is not opened.good.asked
    assert opened.server.tell(good).accepted


@pytest.mark.parametrize("thing", [None, 3, "reply", {"round": 0}, [1.0]])
def test_what_is_no_reply_is_refused(opened, thing):
    assert "a reply is expected, not" in opened.server.tell(thing).reason


def test_a_number_too_long_to_print_is_refused_too(opened):
    assert (
        "digest of type int is not"
        in opened.server.tell(replace(opened.good, digest=10**5000)).reason
    )


def test_after_refusals_the_round_comes_out_as_without_them(tmp_path):
    logs = []
    for bad in (False, True):
        opened = open_round(tmp_path / str(bad))
        if bad:
            opened.server.tell(replace(opened.good, loss=float("inf")))
            opened.server.tell(replace(opened.good, scalars=np.zeros((1, 1), np.float32)))
            opened.server.tell(replace(opened.good, run="another"))
        assert opened.server.tell(opened.good).accepted
        closed = opened.server.close()
        assert isinstance(closed, Closed)
        logs.append((closed.record.to_bytes(), closed.bytes_up, closed.bytes_down))
    assert logs[0] == logs[1]


def test_all_problems_are_told_at_once(opened):
    g = np.ones((2, 2), np.float32)
    g[1, 0] = np.nan
    bad = replace(opened.good, run="x", asked=b"", digest=-1, scalars=g, examples=0)
    reason = opened.server.tell(bad).reason
    assert reason.count(";") == 4
    for part in (
        "run 'x' is not this run",
        "asked  is not the question that is open",
        "digest -1",
        "scalars is nan at local step 1, direction 0",
        "examples 0 is not an integer in [1,",
    ):
        assert part in reason


def test_late_repeated_and_uncalled_replies(opened):
    server, good = opened.server, opened.good
    assert server.tell(good).accepted
    assert f"client {good.client} has answered already" in server.tell(good).reason
    uncalled = next(i for i in range(5) if i not in {plan.client for plan in opened.plans})
    assert "was not asked" in server.tell(replace(good, client=uncalled)).reason
    server.close()
    assert "no round is open" in server.tell(good).reason
    server.ask()
    assert f"round {good.round} is not the open one" in server.tell(good).reason
    assert len(server.ledger.refusals()) == 4
    assert server.ledger.refusals()[0][:2] == (good.client, good.round)


def test_a_reply_to_an_aborted_attempt_counts_in_the_next_one(opened):
    """The question is the same, so the answer is."""
    server = opened.server
    server.settings = replace(RULES, sample=5, min_replies=5)
    server.close()
    plans = server.ask()
    late = opened.clients[0].answer(plans[0])
    aborted = server.close()
    assert isinstance(aborted, Aborted)
    assert server.ledger.attempt(aborted.round) == 1
    assert plans[0].client in {plan.client for plan in server.ask()}
    assert server.tell(late).accepted


@pytest.mark.parametrize(
    "now",
    [{"mu": 2e-3}, {"scheme": "central"}, {"directions": 3}, {"steps": 1}, {"hyper": {"lr": 0.01}}],
)
def test_a_reply_to_another_question_is_refused(tmp_path, now):
    """A server that was started again with other settings, while replies were on their way."""
    ledger, path = new_ledger(tmp_path / "ledger.db"), tmp_path / "ledger.db"
    clients = clients_of(ledger, 5)
    before = Server(ledger, RULES)
    old = [clients[plan.client].answer(plan) for plan in before.ask()]
    ledger.close()
    server = Server(Ledger.open(path, method=Plain), replace(RULES, **now))
    new = [clients[plan.client].answer(plan) for plan in server.ask()]
    assert not any(server.tell(reply).accepted for reply in old)
    assert all(server.tell(reply).accepted for reply in new)
    closed = server.close()
    assert isinstance(closed, Closed)
    expected = np.mean([reply.scalars.astype(np.float64) for reply in new], axis=0)
    directions = (replace(RULES, **now)).directions
    assert np.array_equal(closed.record.coefficient, (expected / directions).ravel().astype("f4"))


def test_only_plans_that_were_sent_count_as_bytes_down(opened):
    """One client had lost its log: its first plan, with less of the log, was never sent."""
    server, clients = opened.server, opened.clients
    assert server.tell(opened.good).accepted
    server.close()
    plans = {plan.client: plan for plan in server.ask()}
    lost, *others = plans
    plans[lost] = server.rejoin(lost, 0)
    for _ in range(2):  # a message may get lost, and is sent again
        server.sent(lost)
    clients[lost] = clients_of(server.ledger, 5)[lost]
    for plan in plans.values():
        assert server.tell(clients[plan.client].answer(plan)).accepted
    scalars = 2 * plans[lost].scalars + sum(plans[client].scalars for client in others)
    assert server.close().bytes_down == 4 * scalars


def test_after_an_error_no_round_is_open(tmp_path):
    """The same server goes on, with the settings that it is given then."""
    server = Server(new_ledger(tmp_path / "x"), replace(RULES, divergence_factor=2.0))
    clients = clients_of(server.ledger, 5)
    one_round(server, clients)
    server.settings = replace(server.settings, hyper={"lr": 1e4})

    def until_it_diverges() -> None:
        for _ in range(20):
            one_round(server, clients)

    with pytest.raises(Diverged):
        until_it_diverges()
    with pytest.raises(RuntimeError, match="no round is open"):
        server.close()
    server.settings = replace(RULES, directions=3, hyper={"lr": 1e-3})
    closed = one_round(server, clients)
    assert isinstance(closed, Closed)
    assert (closed.record.terms, closed.record.changes["lr"]) == (2 * 3, pytest.approx(1e-3))


def test_a_reply_that_is_changed_after_it_was_told_does_not_matter(tmp_path):
    records = []
    for name in ("kept", "changed"):
        opened = open_round(tmp_path / name)
        opened.server.tell(opened.good)
        if name == "changed":
            opened.good.scalars[:] = 1e9
        closed = opened.server.close()
        assert isinstance(closed, Closed)
        records.append(closed.record.to_bytes())
    assert records[0] == records[1]


def test_calls_out_of_order_are_named(opened, tmp_path):
    opened.server.close()
    with pytest.raises(RuntimeError, match="no round is open"):
        opened.server.close()
    with pytest.raises(ProtocolError, match=r"client 0 cannot rejoin at position 0: clients \[\]"):
        opened.server.rejoin(0, 0)
    plans = opened.server.ask()
    assert opened.server.ask() == plans
    with pytest.raises(ProtocolError, match="cannot rejoin at position 3"):
        opened.server.rejoin(plans[0].client, 3)


def test_settings_name_all_their_problems():
    with pytest.raises(SettingsError) as caught:
        RoundSettings(
            clients=2,
            sample=3,
            steps=0,
            directions=70_000,
            mu=0.0,
            scheme="backward",  # pyright: ignore[reportArgumentType]
            weighting="size",  # pyright: ignore[reportArgumentType]
            min_replies=4,
            divergence_factor=0.5,
            hyper={"lr": -1.0, "nu": float("nan")},
        )
    names = "sample min_replies steps directions mu scheme weighting divergence_factor lr nu"
    for name in names.split():
        assert f"{name} = " in str(caught.value)


@given(seed=st.integers(0, 2**63), sample=st.integers(1, 5))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_client_is_sampled_in_the_end(tmp_path, seed, sample):
    path = tmp_path / f"{seed}-{sample}-{len(list(tmp_path.iterdir()))}"
    with new_ledger(path, seed=seed) as ledger:
        server = Server(ledger, replace(RULES, sample=sample))
        clients = clients_of(ledger, 5)
        seen: set[int] = set()
        for _ in range(12):
            plans: list[Any] = server.ask()
            assert len({plan.client for plan in plans}) == sample
            seen |= {plan.client for plan in plans}
            one_round(server, clients)
        assert len(seen) >= min(5, sample + 1)


@pytest.mark.parametrize(("loss", "stops"), [(2.0, True), (1e-7, False)])
def test_rounds_that_nothing_moves_end_a_run_unless_it_has_learned_all(tmp_path, loss, stops):
    ledger = new_ledger(tmp_path / "ledger.db")
    server = Server(ledger, RULES)

    def round(value: float, scalar: float) -> None:
        for plan in server.ask():
            shape = (plan.steps, plan.directions)
            g = np.full(shape, scalar, np.float32)
            asked = hash_question(plan)
            server.tell(
                Reply(plan.run, plan.round, plan.client, asked, plan.round, g, None, value, 9)
            )
        server.close()

    for _ in range(10):
        round(2.0, 0.1)
    for _ in range(5):
        round(loss, 0.0)
    if stops:
        with pytest.raises(Diverged) as caught:
            server.ask()
        assert (caught.value.position, caught.value.lr) == (9, pytest.approx(0.025))
    else:
        round(loss, 0.0)
        assert ledger.position == 16
