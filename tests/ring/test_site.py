"""What a site refuses, whoever asks, and what it remembers."""

from __future__ import annotations

import os
import sqlite3
import stat
import tracemalloc
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console

from hiso.cli.display import inspection
from hiso.errors import ProtocolError, StorageError
from hiso.ring.answers import Answers
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan, Reply
from hiso.ring.round_settings import RoundSettings
from hiso.ring.server import Server
from hiso.ring.site import ANSWERS, KEY, Site
from hiso.ring.site_settings import SiteSettings, Value, differences
from hiso.ring.wire import hash_question, reply_from_bytes, reply_to_bytes
from hiso.run.inspect import inspect_run

from .standin import Curved, Plain, StandIn, client_of, new_ledger

RULES = RoundSettings(clients=1, sample=1, steps=2, directions=3, mu=1e-3)
PLAN = Plan("00" * 32, 7, 0, (), bytes(32), 2, 3, 1e-3, "forward", 0)
METHOD = Plain(lr=0.05)


def site_with(folder: Path, expected: dict[str, Value] | None = None, **settings: Any) -> Site:
    folder.mkdir(exist_ok=True)
    return Site(folder, SiteSettings(**settings), expected)


def answered(site: Site, plan: Plan, client: Client) -> bytes:
    """As a worker does."""
    if (known := site.recall(plan)) is not None:
        return known
    site.check(plan, client.replica.identity.method, batch=10)
    return reply_to_bytes(site.answer(plan, client))


def rounds(server: Server, site: Site, client: Client, count: int) -> list[bytes]:
    told: list[bytes] = []
    for _ in range(count):
        (plan,) = server.ask()
        told.append(answered(site, plan, client))
        assert server.tell(reply_from_bytes(told[-1])).accepted
        server.close()
    return told


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return new_ledger(tmp_path / "ledger")


def test_a_plan_of_2_to_the_32_scalars_is_refused_before_anything_is_allocated(tmp_path, ledger):
    site, client = site_with(tmp_path / "site"), client_of(0, StandIn(ledger.identity))
    server = Server(ledger, RULES)
    (plan,) = server.ask()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="4294967296 scalars"):
            answered(site, replace(plan, steps=2**16, directions=2**16), client)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20
    assert site.sent == 0
    rounds(server, site, client, 1)  # and it goes on
    assert site.sent == 6


def test_a_value_that_the_site_insists_on_is_checked_before_measuring(tmp_path, ledger):
    """A server that freezes the model, by a change in the plan or in a record of before."""
    server = Server(ledger, RULES)
    site = site_with(tmp_path / "site", {"lr": 0.05, "scheme": "forward", "directions": 3})
    client = client_of(0, StandIn(ledger.identity))
    rounds(server, site, client, 1)
    server.settings = replace(RULES, hyper={"lr": 0.0})
    (plan,) = server.ask()
    with pytest.raises(ProtocolError, match=r"lr is 0\.0, this site insists on 0\.05"):
        answered(site, plan, client)
    rounds(server, site_with(tmp_path / "other"), client, 1)  # another site lets it
    (plan,) = server.ask()
    assert not plan.changes
    for late in (client, client_of(0, StandIn(ledger.identity))):
        with pytest.raises(ProtocolError, match=r"lr is 0\.0"):
            answered(site, server.rejoin(0, 0), late)
    assert site.sent == 6


@given(
    lr=st.floats(0, 1, width=32),
    other=st.floats(0, 1, width=32),
    scheme=st.sampled_from(["forward", "central"]),
)
def test_values_are_equal_where_the_log_holds_the_same_float32(lr, other, scheme):
    plan = replace(PLAN, changes={"lr": other}, scheme=scheme)
    expected: dict[str, Value] = {"lr": float(np.nextafter(lr, 2.0)), "scheme": "forward"}
    count = int(lr != other) + int(scheme != "forward")
    assert len(list(differences(plan, {"lr": 9.0}, expected))) == count
    assert list(differences(PLAN, {"lr": lr}, {"lr": lr, "directions": 3, "local_steps": 2})) == []


@pytest.mark.parametrize(("method", "count"), [(Plain(lr=0.05), 6), (Curved(lr=0.05), 12)])
def test_scalars_in_all_are_counted_over_runs_restarts_and_rollbacks(tmp_path, method, count):
    settings, folder = {"max_scalars": 3 * count}, tmp_path / "site"
    ledger = new_ledger(tmp_path / "first", method)
    client, site = client_of(0, StandIn(ledger.identity)), site_with(folder, **settings)
    told = rounds(Server(ledger, RULES), site, client, 2)
    site.close()
    ledger.rollback(0)
    site, client = site_with(folder, **settings), client_of(0, StandIn(ledger.identity))
    assert rounds(Server(ledger, RULES), site, client, 2) == told  # asked again: free, and equal
    assert site.sent == 2 * count
    other = new_ledger(tmp_path / "second", method, seed=8)
    server, client = Server(other, RULES), client_of(0, StandIn(other.identity))
    rounds(server, site, client, 1)
    (plan,) = server.ask()
    with pytest.raises(ProtocolError, match=f"beside the {3 * count} of before"):
        answered(site, plan, client)
    assert client.replica.position == 0  # nothing was folded
    site.close()
    with pytest.raises(ProtocolError, match="in all are allowed"):
        answered(site_with(folder, **settings), plan, client)


def test_the_same_question_gets_the_bytes_of_the_first_time(tmp_path, ledger):
    """Even if measuring gives something else by now, and the records before it are left out."""
    server, site = Server(ledger, RULES), site_with(tmp_path / "site")
    rounds(server, site, client_of(0, StandIn(ledger.identity)), 2)
    server.ask()
    plan = server.rejoin(0, 0)
    first = answered(site, plan, client_of(0, StandIn(ledger.identity)))
    other = client_of(0, StandIn(ledger.identity))
    other._losses = lambda batches: [7.0] * len(batches)
    assert answered(site, replace(plan, records=()), other) == first
    assert answered(site, replace(plan, mu=2e-3), other) != first
    reply = reply_from_bytes(first)
    assert (reply.asked, reply.round, site.sent) == (hash_question(plan), 2, 24)


def test_the_loss_is_rounded_unless_the_site_says_otherwise(tmp_path, ledger):
    (plan,) = Server(ledger, RULES).ask()
    client = client_of(0, StandIn(ledger.identity))
    exact = client.answer(plan)
    rounded = site_with(tmp_path / "a").answer(plan, client)
    assert rounded.loss != exact.loss
    assert rounded.loss == pytest.approx(exact.loss, rel=5e-3)
    assert float(f"{rounded.loss:.3g}") == rounded.loss
    told = site_with(tmp_path / "b", report_loss="exact").answer(plan, client)
    assert reply_to_bytes(told) == reply_to_bytes(exact)


def test_a_loss_that_is_left_out_is_shown_as_unknown(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with new_ledger(run / "ledger.sqlite") as ledger:
        site = site_with(tmp_path / "site", report_loss="none")
        told = rounds(Server(ledger, RULES), site, client_of(0, StandIn(ledger.identity)), 2)
        assert [reply_from_bytes(data).loss for data in told] == [None, None]
    found = inspect_run(run, 2)
    assert [line["loss"] for line in found["rounds"]] == [None, None]
    console = Console(record=True, width=120)
    inspection(console, found | {"settings": {"method": "plain"}})
    assert "nan" not in console.export_text()


def test_other_data_have_another_mark_and_nobody_else_can_compute_it(tmp_path):
    site = site_with(tmp_path / "site")
    first, changed = site.mark_data("a")
    assert not changed
    assert site.mark_data("a") == (first, False)
    second, changed = site.mark_data("b")
    assert changed
    assert second != first
    assert site.mark_data("b") == (second, False)
    assert site_with(tmp_path / "other").mark_data("a")[0] != first


def test_files_are_their_owners_alone_and_the_key_stays(tmp_path):
    before = os.umask(0)
    try:
        site = site_with(tmp_path / "site")
        site._answers.keep(reply_to(PLAN))
    finally:
        os.umask(before)
    files = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "site").iterdir()}
    assert {KEY, ANSWERS, f"{ANSWERS}-wal"} <= files.keys()
    assert set(files.values()) == {0o600}
    key, seed = (tmp_path / "site" / KEY).read_bytes(), site.batch_seed("run")
    assert len(key) == 32
    assert seed is not None
    site.close()
    again = site_with(tmp_path / "site")
    assert again.batch_seed("run") == seed != again.batch_seed("another run")
    assert site_with(tmp_path / "other").batch_seed("run") != seed
    assert site_with(tmp_path / "open", batches="seed").batch_seed("run") is None
    assert (tmp_path / "open" / KEY).exists()  # data are marked with it
    (tmp_path / "site" / KEY).write_bytes(key[:31])
    with pytest.raises(ProtocolError, match="has 31 bytes"):
        site_with(tmp_path / "site")


def reply_to(plan: Plan) -> Reply:
    g = np.ones((plan.steps, plan.directions), np.float32)
    return Reply(plan.run, plan.round, 0, hash_question(plan), 1, g, None, 0.5, 10)


def test_a_file_of_answers_is_only_appended_to(tmp_path):
    answers = Answers(tmp_path / "answers")
    assert (answers.sent, answers.reached(PLAN.run)) == (0, 0)
    answers.keep(reply_to(PLAN))
    with pytest.raises(ProtocolError):
        answers.keep(replace(reply_to(PLAN), loss=0.6))
    assert answers.find(hash_question(PLAN)) == reply_to_bytes(reply_to(PLAN))
    assert answers.find(bytes(32)) is None
    answers.keep(reply_to(replace(PLAN, round=3)))
    assert (answers.sent, answers.reached(PLAN.run), answers.reached("ff" * 32)) == (12, 7, 0)


def test_what_is_no_file_of_answers_is_refused_and_left_alone(tmp_path, ledger):
    ledger.close()
    before = ledger.path.read_bytes()
    with pytest.raises(ProtocolError, match="not a file of answers"):
        Answers(ledger.path)
    assert ledger.path.read_bytes() == before
    (tmp_path / "text").write_text("no database at all\n" * 100)
    with pytest.raises(ProtocolError, match="not what hiso wrote there"):
        Answers(tmp_path / "text")
    with pytest.raises(StorageError):
        Answers(tmp_path / "no" / "folder")
    Answers(tmp_path / "later").close()
    with closing(sqlite3.connect(tmp_path / "later")) as db:
        db.execute("PRAGMA user_version=2")
    with pytest.raises(ProtocolError, match="format 1"):
        Answers(tmp_path / "later")


def problems(
    settings: SiteSettings, plan: Plan = PLAN, batch: int = 4, sent: int = 0, reached: int = 0
):
    return list(settings.problems(plan, METHOD, batch, sent=sent, reached=reached))


@given(
    before=st.integers(0, 100),
    most=st.integers(1, 20),
    in_all=st.integers(1, 100),
    least=st.integers(1, 9),
    mu=st.floats(1e-5, 1e-1),
    bounds=st.tuples(st.floats(1e-5, 1e-1), st.floats(1e-5, 1e-1)).map(sorted),
)
def test_a_plan_is_refused_exactly_where_a_limit_is_passed(before, most, in_all, least, mu, bounds):
    settings = SiteSettings(
        max_scalars_per_round=most,
        max_scalars=in_all,
        min_batch=least,
        min_mu=bounds[0],
        max_mu=bounds[1],
    )
    broken = [most < 6, before + 6 > in_all, least > 4, not bounds[0] <= mu <= bounds[1]]
    assert len(problems(settings, replace(PLAN, mu=mu), sent=before)) == sum(broken)


def test_a_server_that_has_rolled_back_too_far_is_refused():
    def refused(round: int, reached: int) -> bool:
        return bool(
            problems(SiteSettings(min_position=5), replace(PLAN, round=round), reached=reached)
        )

    assert refused(4, 5)
    assert refused(0, 9)
    assert not refused(5, 9)
    assert not refused(4, 4)  # it has not been there yet
    assert not refused(0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_scalars_per_round": 0},
        {"max_scalars": float("nan")},
        {"min_mu": 2.0, "max_mu": 1.0},
        {"min_batch": 0},
        {"batches": "public"},
        {"max_scalar": 5},
    ],
)
def test_settings_that_allow_nothing_or_are_unknown_are_refused(wrong):
    with pytest.raises(ValidationError):
        SiteSettings(**wrong)
