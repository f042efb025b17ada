"""A worker: has model, private data and replica, and answers the server's requests.

It keeps running while messages and servers come and go. For each run it has a folder
with a copy of the log and snapshots: an ordinary run folder, which `hiso inspect` and `hiso eval`
can read. So a worker that was stopped or killed can resume at its position. What the site decides,
and what it has answered, is in the worker's folder too, for all runs (`hiso.ring.site`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hiso.core.identity import Identity
from hiso.core.measure.backward import Probing, check_backward
from hiso.core.measure.outcome import Outcome
from hiso.core.noise.point import Point
from hiso.core.record import MAX_STREAM
from hiso.core.replica.replica import Replica
from hiso.errors import HisoError, ProtocolError
from hiso.flower.envelope import BEHIND, MAX_REPLIES, UNKNOWN_RUN, Envelope, join
from hiso.flower.site_file import open_site
from hiso.ring.accept.replies import is_whole
from hiso.ring.client import Client
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.messages import Plan
from hiso.ring.site import Site
from hiso.ring.wire import plan_from_bytes, reply_to_bytes
from hiso.run.folder import RunFolder
from hiso.run.formatting import are
from hiso.run.identity import check_identity, deployed
from hiso.run.observer import Advance, Silent
from hiso.run.settings import Settings
from hiso.run.snapshots import replay, restore_snapshot, save_snapshot
from hiso.run.workload.base import adjustments, make_replica
from hiso.run.workload.load import load_workload

FEWEST_COUNTED = 20
"""Fewest examples on which a site counts right answers; the count of fewer says much of each."""
_RIGHT = ("accuracy", "exact_match")
"""Metrics that are a share of right answers."""
log = logging.getLogger(__name__)


class Superseded(ProtocolError):
    """A newer request replaced this one."""


class Worker:
    """Answers for one client, or for several that share its replica.

    Attributes:
        shards: Private examples by client.
        superseded: Set this to end the present measurement.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        own: tuple[int, ...] | None,
        alive: Callable[[], None],
        probe: Probing = "forward",
        site: Site | None = None,
    ) -> None:
        """Loads model and data, and continues the last run of this worker.

        Args:
            settings: The settings; all participants of a run need the same settings.
            folder: The folder for its copies of logs.
            own: The clients to which the data belong; None to hold every client's share.
            alive: Called whenever work has advanced.
            probe: How scalars are computed. Clients within `backward_clients` of the settings use
                backward passes in any case.
            site: What the site decides; by default, what `site.toml` in the folder says.

        Raises:
            LoadError: Model or data cannot be loaded.
            SettingsError: The data do not fit the settings, or `check_backward` refuses the
                settings; or `site.toml` is wrong.
            RunConflict: The last run was made with another model or other settings.
            ProtocolError: The copy of the log is damaged.
        """
        self._settings, self._folder, self._own, self._alive = settings, folder, own, alive
        self._method, self._probe = settings.make_method(), probe
        if probe == "backward":
            check_backward(self._method, settings.memory)
        self._site = open_site(folder, settings) if site is None else site
        self.superseded = threading.Event()
        self._ledger: Ledger | None = None
        self._replica: Replica | None = None
        self._clients: dict[int, Client] = {}
        self._load()
        last = max(folder.glob("run-*/ledger.sqlite"), key=os.path.getmtime, default=None)
        if last is not None:
            self._open(RunFolder(last.parent))

    @property
    def run(self) -> str | None:
        """Id of the present run."""
        return None if self._ledger is None else self._ledger.run

    @property
    def position(self) -> int:
        """Position of the replica."""
        return 0 if self._replica is None else self._replica.position

    def handle(self, request: Envelope, clients: Sequence[int]) -> Envelope:
        """The answer of a node that has these clients to a request; it may be an error."""
        try:
            here = [client for client in clients if client in self.shards]
            asked = request.facts.get("clients", here)
            known = isinstance(asked, list) and all(
                is_whole(client, 0, MAX_STREAM) and client in here for client in asked
            )
            if not (known and asked):
                raise ProtocolError(f"{are(here)} here, and {asked!r:.200} is asked for")
            match request.kind:
                case "hello":
                    return self.hello(clients, request.facts.get("run"))
                case "round":
                    return self._round(request, asked)
                case "fold":
                    return self._fold(request)
                case "count":
                    return self._count(request, asked)
                case _:
                    raise ProtocolError(f"a worker does not know the request {request.kind!r}")
        except HisoError as error:
            log.error("%s: %s", type(error).__name__, error)
            return Envelope.of_exception(error)

    def hello(self, clients: Sequence[int], run: str | None) -> Envelope:
        """Clients, identity, and position in `run`; may be called from any thread."""
        weights = self._workload.module.parameters()
        position, chain = self._stands_in(run)
        facts = {
            "clients": list(clients),
            "weights": sum(w.numel() for w in weights if w.requires_grad),
            "data": self._data,
            "identity": self._identity.text,
            "run": run if chain else None,
            "position": position,
            "chain": chain.hex(),
        }
        return Envelope("hello", facts)

    def _stands_in(self, run: str | None) -> tuple[int, bytes]:
        """Position and chain hash in a run; the hash is empty if the worker does not know the
        run.
        """
        if run is None or not (folder := self._folder_of(run)).has_run():
            return 0, b""
        with Ledger.read(folder.ledger) as ledger:
            return ledger.position, ledger.chain_at(ledger.position)

    def _folder_of(self, run: str) -> RunFolder:
        return RunFolder(self._folder / f"run-{run[:16]}")

    def close(self) -> None:
        """Saves a snapshot, so that the next start is quick."""
        if self._ledger is not None:
            if self.position:
                save_snapshot(RunFolder(self._ledger.path.parent).snapshots, self._standing)
            self._ledger.close()
        self._site.close()

    @property
    def _standing(self) -> Replica:
        assert self._replica is not None
        return self._replica

    def _load(self) -> None:
        self._workload = load_workload(self._settings, self._method, Silent(), own=self._own)
        self._identity = deployed(self._workload.identity)
        self._data, changed = self._site.mark_data(self._workload.identity.data["fingerprint"])
        if changed:
            log.warning("the data are not those of the last start; the server is told so")
        self.shards = {shard.client: shard for shard in self._workload.shards}

    def _round(self, request: Envelope, clients: Sequence[int]) -> Envelope:
        """Replies of these clients, or the reasons why there are none.

        Ends early when the next reply might not fit into the message: the server asks again for
        the clients that are missing.
        """
        plan = plan_from_bytes(request.body)
        replies: list[bytes] = []
        size = 0
        refused: dict[int, HisoError] = {}
        for client in clients:
            try:
                told = self._reply(plan.for_client(client), request)
            except Superseded:
                raise
            except HisoError as error:
                log.error("%s: %s", type(error).__name__, error)
                refused[client] = error
                continue
            if isinstance(told, Envelope):
                return told
            replies.append(told)
            size += len(told)
            if size + len(told) > MAX_REPLIES:
                break
        if not replies:
            return Envelope.of_exception(next(iter(refused.values())))
        every = self._settings.snapshot_every
        if every and plan.round % every == 0 and plan.round:
            save_snapshot(self._snapshots, self._standing)
        reasons = [[client, f"{type(e).__name__}: {e}"] for client, e in refused.items()]
        return Envelope("replies", {"refused": reasons} if reasons else {}, join(replies))

    def _reply(self, plan: Plan, request: Envelope) -> bytes | Envelope:
        """The bytes of one client's reply; or an answer that stands for all clients."""
        known, shard = self._site.recall(plan), self.shards[plan.client]
        if known is None:
            batch = min(shard.batch_size, shard.examples)
            self._site.check(plan, self._identity.method, batch)
        if (refusal := self._prepare(plan, request)) is not None:
            return refusal
        client = self._clients[plan.client]
        if known is not None:
            client.catch_up(plan)  # after a reply the server relies on its position
            log.info("round %d: the same plan again, the same answer", plan.round)
            return known
        reply = self._site.answer(plan, client)
        log.info(
            "round %d, client %d: %d scalars, digest %016x",
            plan.round, plan.client, reply.count, reply.digest,
        )  # fmt: skip
        return reply_to_bytes(reply)

    def _fold(self, request: Envelope) -> Envelope:
        """Folds the rest of the log without measuring."""
        plan = plan_from_bytes(request.body)
        if (refusal := self._prepare(plan, request)) is not None:
            return refusal
        index, client = next(iter(self._clients.items()))
        client.catch_up(plan.for_client(index))
        digest = f"{self._standing.digest():016x}"
        log.info("position %d, digest %s", self.position, digest)
        return Envelope("folded", {"position": self.position, "digest": digest})

    def _count(self, request: Envelope, clients: Sequence[int]) -> Envelope:
        """Folds the rest of the log, and counts the right answers of these clients together."""
        examples = self._countable(clients)
        folded = self._fold(request)
        if folded.kind != "folded":
            return folded
        self._standing.write()
        metrics = self._workload.evaluate(
            self._objective, examples, self._standing.biases, lambda _: self._go_on()
        )
        share = next((metrics[name] for name in _RIGHT if name in metrics), None)
        if share is None:
            raise ProtocolError("the task has no right answers that could be counted")
        counts = {"examples": len(examples), "right": round(share * len(examples))}
        log.info("position %d: %d of %d right", self.position, counts["right"], len(examples))
        return Envelope("counts", folded.facts | counts)

    def _countable(self, clients: Sequence[int]) -> Sequence[Any]:
        """The examples on which this site allows to count.

        Raises:
            ProtocolError: It allows none, or they are too few.
        """
        match self._site.settings.evaluate:
            case "no":
                raise ProtocolError(
                    'this site counts no right answers: evaluate = "test" or "train" in its '
                    "site.toml allows it"
                )
            case "test":
                examples = self._workload.test
            case "train":
                examples = [e for client in clients for e in self.shards[client].encoded]
        if len(examples) < FEWEST_COUNTED:
            raise ProtocolError(
                f"this site counts right answers on {FEWEST_COUNTED} examples or more, and it has "
                f"{len(examples)}"
            )
        return examples

    def _prepare(self, plan: Plan, request: Envelope) -> Envelope | None:
        """Switches to the plan's run, and makes its own log a prefix of the plan's log.

        Returns an answer if this is not possible.

        Raises:
            RunConflict: Model, task or settings differ from those of the run.
            ProtocolError: The identity does not belong to the run.
        """
        if self.run != plan.run:
            folder = self._folder_of(plan.run)
            if not folder.has_run():
                if (identity := request.facts.get("identity")) is None:
                    return Envelope.of_error(UNKNOWN_RUN, f"send the identity of {plan.run}")
                self._create(folder, plan.run, str(identity))
            self._open(folder)
        elif not self._in_step():
            log.warning("replica and log differ: rebuilding the replica at the end of the log")
            self._stand(self._log)
        self._rewind(plan)
        if (start := plan.round - len(plan.records)) > self.position:
            reason = f"it is at position {self.position}, but the records begin at {start}"
            facts = {"error": BEHIND, "reason": reason, "position": self.position}
            return Envelope("error", facts | {"chain": self._standing.chain.hex()})
        return None

    def _create(self, folder: RunFolder, run: str, text: str) -> None:
        identity = Identity.parse(text)
        if identity.run != run:
            raise ProtocolError(f"the sent identity belongs to run {identity.run}, not to {run}")
        check_identity(identity, self._identity)
        folder.path.mkdir(exist_ok=True)
        settings = self._settings.with_hyper(self._method)
        Ledger.create(folder.ledger, identity, settings.model_dump()).close()

    def _open(self, folder: RunFolder) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        with ExitStack() as stack:
            ledger = Ledger.open(folder.ledger)
            stack.callback(ledger.close)
            check_identity(ledger.identity, self._identity)
            ledger.verify()
            self._stand(ledger)
            stack.pop_all()
        self._ledger = ledger

    def _in_step(self) -> bool:
        """Whether the replica is usable and at the end of the log.

        It is not after an interrupted fold, for example because of a lack of memory.
        """
        replica, end = self._standing, self._log.position
        try:
            replica.check()
        except ProtocolError as error:
            log.error("%s", error)
            return False
        return (replica.position, replica.chain) == (end, self._log.chain_at(end))

    def _stand(self, ledger: Ledger) -> None:
        """Rebuilds the replica at the end of the log, and compares it with an earlier digest."""
        if self._replica is not None:
            self._load()  # the weights of the model in memory have changed
        replica = make_replica(ledger.identity, self._workload, self._settings.memory, Silent())
        end, known, heartbeat = ledger.position, ledger.last_digest(), _Heartbeat(self._alive)
        restore_snapshot(RunFolder(ledger.path.parent).snapshots, replica, ledger, end)
        if known is not None and replica.position <= known[0]:
            replay(replica, ledger, known[0], heartbeat)
            if replica.digest() != known[1]:
                raise ProtocolError(
                    f"position {known[0]} of {ledger.path} had digest {known[1]:016x} and now has "
                    f"{replica.digest():016x}: delete that folder, the server sends the log again"
                )
        replay(replica, ledger, end, heartbeat)
        self._replica = replica
        self._objective = self._workload.objective(replica.rows, joint=False)
        adjust = adjustments(self._settings, self._workload)
        able = self._settings.clients if self._probe == "backward" else 0
        able = max(able, self._settings.backward_clients)
        secret = self._site.batch_seed(ledger.run)
        self._clients = {
            index: Client(
                index,
                shard if secret is None else shard.keyed(secret),
                replica,
                self._losses,
                keep=ledger.follow,
                backward=self._loss if index < able else None,
                at_points=self._at_points if self._settings.joint_directions else None,
                adjust=adjust.get(index),
            )
            for index, shard in self.shards.items()
        }
        log.info("run %s: position %d, digest %016x", ledger.run[:16], end, replica.digest())

    def _rewind(self, plan: Plan) -> None:
        """Rolls back to the first record that differs from the plan's log (the server rolled
        back).
        """
        ledger, at = self._log, self.position
        target = min(at, plan.round)
        first = plan.round - len(plan.records)
        mine = {record.round: record.to_bytes() for record in ledger.records(first)}
        theirs = {record.round: record.to_bytes() for record in plan.records}
        parted = [r for r in theirs if r < target and theirs[r] != mine[r]]
        if parted:
            target = parted[0]
        elif target == plan.round and ledger.chain_at(target) != plan.chain:
            target = 0
        if target < at:
            log.warning(
                "the server's log differs from this one: rolling back to position %d", target
            )
            ledger.rollback(target)
            self._stand(ledger)

    @property
    def _log(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    @property
    def _snapshots(self) -> Path:
        return RunFolder(self._log.path.parent).snapshots

    def _losses(self, batches: Sequence[Any]) -> list[Outcome]:
        self._go_on()
        return self._objective(batches)

    def _at_points(
        self, write: Callable[[Point], None], points: Sequence[Point], batches: Sequence[Any]
    ) -> Sequence[Sequence[Outcome]]:
        self._go_on()
        assert self._objective.at_points is not None
        return self._objective.at_points(write, points, batches)

    def _loss(self, batch: Any) -> Tensor:
        self._go_on()
        return self._objective.loss(batch)

    def _go_on(self) -> None:
        self._alive()
        if self.superseded.is_set():
            raise Superseded("a newer request has arrived, this measurement is discarded")


class _Heartbeat(Silent):
    """An observer that only reports that work advances."""

    def __init__(self, alive: Callable[[], None]) -> None:
        self._alive = alive

    @contextmanager
    def phase(self, text: str, total: int | None = None) -> Iterator[Advance]:  # noqa: ARG002
        """See `Observer.phase`."""
        yield lambda _: self._alive()
