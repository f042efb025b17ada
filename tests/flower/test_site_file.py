"""What a site decides, at a worker of its own: `site.toml`, its answers, its key."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from hiso.errors import SettingsError
from hiso.flower.envelope import Envelope, split
from hiso.flower.site_file import SITE, open_site
from hiso.flower.worker import Worker
from hiso.ring.answers import Answers
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan, Reply
from hiso.ring.server import Server
from hiso.ring.site import ANSWERS, KEY
from hiso.ring.site_settings import SiteSettings
from hiso.ring.wire import hash_question, plan_to_bytes, reply_from_bytes
from hiso.run.settings import parse, parse_settings, read_toml

pytestmark = pytest.mark.usefixtures("one_thread")
KEYS = {
    "task": "digits", "model": "mlp", "method": "zo_sgd", "lr": 0.01, "clients": 1, "sample": 1,
    "batch_size": 8, "directions": 2,
}  # fmt: skip
SETTINGS = parse_settings(KEYS)


def worker_in(folder: Path, toml: str = "") -> Worker:
    folder.mkdir(exist_ok=True)
    if toml:
        (folder / SITE).write_text(toml)
    return Worker(SETTINGS, folder, own=None, alive=lambda: None)


def request(plan: Plan, identity: str) -> Envelope:
    return Envelope("round", {"identity": identity}, plan_to_bytes(plan))


class Run:
    """The server's side of a run with one client."""

    def __init__(self, path: Path, worker: Worker) -> None:
        self.ledger = Ledger.create(path, worker._identity, {})
        self.server = Server(self.ledger, SETTINGS.make_rounds(SETTINGS.make_method()))

    def plan(self) -> Plan:
        """With all records, as for a worker that knows none."""
        self.server.ask()
        return self.server.rejoin(0, 0)

    def ask(self, worker: Worker, plan: Plan | None = None) -> Envelope:
        return worker.handle(request(plan or self.plan(), self.ledger.identity.text), [0])

    def round(self, worker: Worker, *, hinted: bool = False) -> Reply:
        """If `hinted`, the plan has the records that the server takes the worker to lack."""
        answer = self.ask(worker, self.server.ask()[0] if hinted else None)
        assert answer.kind == "replies", answer.facts
        reply = reply_from_bytes(*split(answer.body))
        assert self.server.tell(reply).accepted
        self.server.close()
        return reply

    def roll_back(self, position: int) -> None:
        self.ledger.rollback(position)
        self.server = Server(self.ledger, self.server.settings)


def refusal(answer: Envelope) -> str:
    assert (answer.kind, answer.facts["error"]) == ("error", "ProtocolError")
    return answer.facts["reason"]


def test_the_first_start_writes_a_file_that_shows_every_setting(tmp_path):
    open_site(tmp_path, SETTINGS).close()
    text = (tmp_path / SITE).read_text()
    assert read_toml(tmp_path / SITE) == {}
    shown = [line[2:] for line in text.splitlines() if " = " in line]
    (tmp_path / SITE).write_text("\n".join(shown))
    values = read_toml(tmp_path / SITE)
    assert set(values) == set(SiteSettings.model_fields)
    assert parse(SiteSettings, values, SITE) == SiteSettings()
    assert max(map(len, text.splitlines())) <= 100


def test_the_manual_lists_every_setting():
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    for name, field in SiteSettings.model_fields.items():
        default = str(field.get_default()).replace("()", "[]")
        assert f"| `{name}` | `{default}` | {field.description} |\n" in page


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("max_scalar = 5", "max_scalars"),
        ("max_scalars = 0\nmin_batch = -1", "min_batch"),
        ("min_mu = 1.0\nmax_mu = 0.1", "max_mu = 0.1"),
        ('must_match = ["rounds"]', "rounds is not a setting that a plan has"),
        ('must_match = ["mu", "lr"]', "mu has no fixed value"),
        ('must_match = ["ridge"]', "ridge has no fixed value"),
        ("batches = secret", "cannot read settings"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_loaded(tmp_path, toml, said):
    settings = parse_settings(
        {**KEYS, "mu": "auto", "model": "no such network", "method": "subspace_newton", "ridge": 0}
    )
    (tmp_path / SITE).write_text(toml)
    with pytest.raises(SettingsError, match=said):
        Worker(settings, tmp_path, own=None, alive=lambda: None)


def test_a_refused_plan_is_answered_with_the_reason_and_moves_nothing(tmp_path):
    toml = 'max_scalars = 8\nmin_position = 2\nmin_batch = 4\nmax_mu = 1e-2\nmust_match = ["lr"]'
    worker = worker_in(tmp_path / "site", toml)
    run = Run(tmp_path / "ledger", worker)
    assert "mu = 0.1 must lie in" in refusal(run.ask(worker, replace(run.plan(), mu=0.1)))
    many = replace(run.plan(), steps=2**16, directions=2**16)
    assert "4294967296 scalars" in refusal(run.ask(worker, many))
    frozen = replace(run.plan(), changes={"lr": 0.0})
    assert "insists on 0.01" in refusal(run.ask(worker, frozen))
    first = [run.round(worker) for _ in range(3)]
    run.roll_back(1)
    assert worker.position == 2
    run.server.settings = replace(run.server.settings, scheme="central")
    assert "lies before position 2" in refusal(run.ask(worker))
    assert worker.position == 2
    run.server.settings = replace(run.server.settings, scheme="forward")
    run.server.drop()
    assert (
        reply_from_bytes(*split(run.ask(worker).body)).asked == first[1].asked
    )  # an old answer is free
    for _ in range(3):
        last = run.round(worker)
    worker.close()
    worker = worker_in(tmp_path / "site")
    assert last.round == 3
    assert "beside the 8 of before" in refusal(run.ask(worker))


def test_answers_outlive_a_rollback_a_restart_and_the_loss_of_the_key(tmp_path):
    """Without its answers, the worker would measure on other batches, and answer otherwise."""
    worker = worker_in(tmp_path / "site")
    run = Run(tmp_path / "ledger", worker)
    plans, replies = [run.plan()], [run.round(worker)]
    plans.append(run.plan())
    replies.append(run.round(worker))
    run.roll_back(0)
    worker.close()
    (tmp_path / "site" / KEY).unlink()
    worker = worker_in(tmp_path / "site")
    for plan, reply in zip(plans, replies, strict=True):
        assert split(run.ask(worker, plan).body) == [stored(tmp_path / "site", plan)]
        assert run.round(worker).scalars.tolist() == reply.scalars.tolist()
    worker.close()
    (tmp_path / "site" / ANSWERS).unlink()
    worker = worker_in(tmp_path / "site")
    run.roll_back(0)
    assert run.round(worker).scalars.tolist() != replies[0].scalars.tolist()


def test_old_answers_of_a_course_that_the_worker_has_left_lead_back_to_it(tmp_path):
    worker = worker_in(tmp_path / "site")
    first, other, again = (Run(tmp_path / name, worker) for name in ("first", "other", "again"))
    told = [first.round(worker, hinted=True) for _ in range(3)]
    other.server.settings = replace(other.server.settings, mu=2e-3)
    for _ in range(2):
        other.round(worker, hinted=True)
    sent = worker._site.sent
    back = [again.round(worker, hinted=True) for _ in range(3)]
    assert [reply.asked for reply in back] == [reply.asked for reply in told]
    assert worker._site.sent == sent
    assert again.round(worker, hinted=True).round == 3


def stored(folder: Path, plan: Plan) -> bytes:
    query = "SELECT reply FROM answers WHERE asked = ?"
    with closing(sqlite3.connect(folder / ANSWERS)) as db:
        return db.execute(query, (hash_question(plan),)).fetchone()[0]


def die_before_sending(folder: Path, body: bytes, identity: str) -> None:
    """The process of a worker that is killed when its answer is on the disk and not yet sent."""
    keep = Answers.keep

    def keep_and_die(self: Answers, reply: Reply) -> None:
        keep(self, reply)
        os.kill(os.getpid(), signal.SIGKILL)

    Answers.keep = keep_and_die
    worker = Worker(SETTINGS, folder, own=None, alive=lambda: None)
    worker.handle(Envelope("round", {"identity": identity}, body), [0])


def test_a_worker_killed_between_keeping_and_sending_sends_the_same_bytes_later(tmp_path):
    worker = worker_in(tmp_path / "site")
    run = Run(tmp_path / "ledger", worker)
    run.round(worker)
    worker.close()
    plan = run.plan()
    process = get_context("spawn").Process(
        target=die_before_sending,
        args=(tmp_path / "site", plan_to_bytes(plan), run.ledger.identity.text),
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    (tmp_path / "site" / KEY).unlink()  # measured again, the answer would be another
    worker = worker_in(tmp_path / "site")
    answer = run.ask(worker, plan)
    assert answer.kind == "replies"
    assert split(answer.body) == [stored(tmp_path / "site", plan)]
    assert run.server.tell(reply_from_bytes(*split(answer.body))).accepted
    run.server.close()
    assert run.round(worker).round == 2


def test_two_sites_with_the_same_data_draw_other_batches_and_one_site_the_same(tmp_path):
    def scalars(folder: Path, toml: str = "") -> Any:
        worker = worker_in(folder, toml)
        (tmp_path / "ledger").unlink(missing_ok=True)
        run = Run(tmp_path / "ledger", worker)
        told = run.round(worker).scalars.tolist()
        run.ledger.close()
        worker.close()
        (folder / ANSWERS).unlink()
        return told

    one = scalars(tmp_path / "one")
    assert scalars(tmp_path / "one") == one != scalars(tmp_path / "two")
    public = [scalars(tmp_path / name, 'batches = "seed"') for name in ("three", "four")]
    assert public[0] == public[1] != one
