"""The server's rounds over Flower: sends plans, handles answers, and decides how long to wait."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hiso.core.identity import Identity
from hiso.core.plain import plain
from hiso.core.record import MAX_STREAM
from hiso.errors import ProtocolError, RunConflict, SettingsError
from hiso.flower.envelope import (
    BEHIND,
    BUSY,
    CUT_SHORT,
    LOST,
    RESTARTED,
    UNKNOWN_RUN,
    Envelope,
    split,
)
from hiso.flower.exchange import Answer, Post
from hiso.flower.present import Present
from hiso.flower.sites import Site, Sites
from hiso.flower.waiting import Waiting
from hiso.ring.accept.quarantine import FAULTS, WINDOW
from hiso.ring.accept.replies import is_whole
from hiso.ring.messages import Plan, Reply
from hiso.ring.server import Aborted, Closed, Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.formatting import are, named
from hiso.run.identity import check_identity
from hiso.run.server_status import ReplyTime

log = logging.getLogger(__name__)

_POLL = 0.05
_RETURN = 15.0
"""Longest wait for clients when a run is resumed, in seconds; an idle worker looks every 3 s."""
_TRIES = 10
"""How often the plan of one round is sent to a client, at most."""


@dataclass(frozen=True)
class Pace:
    """How long the server waits.

    Attributes:
        round_seconds: Longest wait for the replies of a round, and for a lost client. A round
            usually closes earlier: see `Conductor.round`.
        start_with: Clients that must be connected before the first round of a run.
    """

    round_seconds: float
    start_with: int


def agree_on_identity(
    post: Post,
    sites: Sites,
    expected: Callable[[int], Identity],
    start_with: int,
    present: Present,
) -> Identity:
    """Waits for `start_with` clients with the same identity, and returns this identity.

    Args:
        post: The messages.
        sites: The clients.
        expected: Returns the part of the identity known from the server's own settings, for a
            given number of labels; raises a `SettingsError` for an unsuitable number.
        start_with: How many clients must have the same identity.
        present: Is told while it waits.
    """
    while True:
        _greet(post, sites)
        for site in sites.all():
            if wrong := differences(expected, site.identity):
                reason = wrong + " (here, then there). Give both the same settings"
                sites.refuse(site, f"set up for another run: {reason}")
        present.tell("waiting for clients")
        votes = Counter(site.identity for site in sites.by_client.values())
        for identity, count in votes.most_common(1):
            if count >= start_with:
                return identity
        time.sleep(_POLL)


def differences(expected: Callable[[int], Identity], there: Identity) -> str:
    """How a client's identity differs from the `expected` one, in words; empty if it does not."""
    try:
        wanted = expected(there.method.labels)
    except SettingsError as error:
        return str(error)
    wanted = replace(wanted, model=there.model, task=there.task, data=there.data)
    return "; ".join(wanted.differences(there))


def _greet(post: Post, sites: Sites) -> list[Answer]:
    """Sends `hello` where needed and handles answers to it; returns the other answers."""
    sites.look()
    answers = post.collect()
    for answer in answers:
        if answer.request.kind == "hello":
            sites.greet(answer)
    return [answer for answer in answers if answer.request.kind != "hello"]


@dataclass
class _Asked:
    """A client that was sampled in the open round."""

    plan: Plan
    request: Envelope | None = None
    node: int = 0
    tries: int = 0
    sent: float = 0.0
    done: bool = False
    up: int = 0
    down: int = 0


class Conductor:
    """Runs the rounds of a server with the reachable clients."""

    def __init__(
        self, post: Post, sites: Sites, server: Server, pace: Pace, present: Present
    ) -> None:
        self._post, self._sites, self._server, self._pace = post, sites, server, pace
        self._present = present
        self._ledger = server.ledger
        self._asked: dict[int, _Asked] = {}
        self._open: dict[int, tuple[Envelope, list[int]]] = {}  # by id(request): for which clients
        self._accepted = 0
        self._waiting = Waiting(pace.round_seconds)
        self._sent = math.inf  # when the first plans of the open round were sent

    def await_return(self) -> None:
        """Waits, at most `_RETURN` seconds, for all clients of the last `WINDOW` rounds.

        A server that resumes a run is ready before its clients have connected again. Without this
        it would do rounds without them, and take them for silent.
        """
        last, end = self._ledger.last_replies(), self._ledger.position
        known = {client for client, round in last.items() if round >= end - WINDOW}
        known -= self._server.settings.withdrawn
        until = time.monotonic() + _RETURN
        while known - self._sites.by_client.keys() and time.monotonic() < until:
            self._hear()
            self._present.tell("waiting for clients")
            time.sleep(_POLL)

    def round(self) -> Closed | Aborted:
        """Runs one round with the clients that answer in time.

        The round closes when `sample` replies are accepted, or when every client that was asked has
        answered, except clients that have been unreachable for long. With `min_replies` replies it
        also closes after three times the usual reply time (see `Waiting`), and in any case after
        `round_seconds`. Every valid reply that has arrived by then is used, whatever their number.

        A lost client that returns gets the plan again, and if it has already measured, it sends
        the stored reply.

        Raises:
            Diverged: The round's loss has exploded. Nothing was recorded.
        """
        plans = self._server.ask(self._position_of)
        began = self._begin({plan.client: _Asked(plan) for plan in plans})
        number = self._ledger.position
        while not self._is_over(began):
            for answer in self._hear():
                self._take(answer)
            self._send(began)
            self._present.tell("rounds")
            time.sleep(_POLL)
        self._note_missing()
        closed = self._server.close({"round": time.monotonic() - began})
        self._note_sizes(number)
        for client, pause in closed.paused.items():
            log.error(
                "client %d is not asked before round %d: %d faults in %d rounds",
                client, pause.until, FAULTS, WINDOW,
            )  # fmt: skip
        if isinstance(closed, Aborted):
            log.warning("round %d was aborted: %s", closed.round, closed.reason)
        else:
            for reason in closed.set_aside.values():
                log.error("%s", reason)
            for cut in closed.cuts:
                log.warning("%s", cut)
        return closed

    def finish(self) -> tuple[int | None, int]:
        """Brings all reachable clients to the end of the log.

        Returns:
            The digest of more than half of them there, or None; and the number of answers.
        """
        digests = dict[int, int]()
        for clients, facts in self._ask_all("fold"):
            if (digest := self._digest_at_the_end(facts)) is None:
                log.warning("%s at the end: %s", named(clients), plain(facts.get("reason")))
            else:
                digests |= dict.fromkeys(clients, digest)
        for digest, votes in Counter(digests.values()).most_common(1):
            if 2 * votes > len(digests):
                return digest, len(digests)
        return None, len(digests)

    def count(self) -> tuple[int, int, int]:
        """Right answers at the end of the log, summed over all reachable sites that allow it.

        Returns:
            Number of sites that have counted, of their examples, and of right answers.
        """
        counts: list[tuple[int, int]] = []
        for clients, facts in self._ask_all("count"):
            examples, right = facts.get("examples"), facts.get("right")
            here = self._digest_at_the_end(facts) is not None
            if here and is_whole(examples, 1, 2**32) and is_whole(right, 0, examples):
                log.info("%s: %d of %d right", named(clients), right, examples)
                counts.append((examples, right))
            else:
                log.warning("%s has not counted: %s", named(clients), plain(facts.get("reason")))
        return len(counts), sum(n for n, _ in counts), sum(right for _, right in counts)

    def _digest_at_the_end(self, facts: Mapping[str, Any]) -> int | None:
        digest = str(facts.get("digest"))
        there = facts.get("position") == self._ledger.position
        return int(digest, 16) if there and re.fullmatch("[0-9a-f]{16}", digest) else None

    def _ask_all(self, kind: str) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Sends all reachable sites the rest of the log; the clients and the facts of each answer.

        Ends when all have answered; for "fold", when more than half have and the usual reply time
        is over.
        """
        began, end = self._begin({}), self._ledger.position
        while time.monotonic() - began < self._pace.round_seconds:
            for answer in self._hear():
                if clients := self._asked_by(answer):
                    for client in clients:
                        self._asked[client].done = True
                    yield clients, answer.envelope.facts
            for site in self._sites.all():
                known = self._asked.keys() | self._server.settings.withdrawn
                if new := [client for client in site.clients if client not in known]:
                    plan = self._server.rest(new[0], self._stands(site))
                    self._asked |= {client: _Asked(plan) for client in new}
            self._send(began, kind=kind)
            self._present.tell("last catch-up" if kind == "fold" else "counting right answers")
            here = self._sites.by_client.keys() & self._asked.keys()
            done = [self._asked[client].done for client in here]
            whole = all(done) and not self._sites.expects_more
            enough = kind == "fold" and 2 * sum(done) > len(done) and self._waited
            if self._asked and (whole or enough):
                break
            time.sleep(_POLL)
        self._note_sizes(end)

    def _hear(self) -> list[Answer]:
        answers = _greet(self._post, self._sites)
        for site in [site for site in self._sites.all() if not site.belongs]:
            try:
                check_identity(self._ledger.identity, site.identity)
                site.belongs = True
                self._note_data(site)
            except RunConflict as error:
                self._sites.refuse(site, str(error))
        return answers

    def _note_data(self, site: Site) -> None:
        if site.data is not None and (new := self._ledger.mark_data(site.clients, site.data)):
            log.warning("the data of %s have changed", named(new))

    def _begin(self, asked: dict[int, _Asked]) -> float:
        self._asked, self._open, self._accepted, self._sent = asked, {}, 0, math.inf
        self._present.asked = asked.keys()
        self._waiting.begin()
        return time.monotonic()

    def _is_over(self, began: float) -> bool:
        count, rules = len(self._asked), self._server.settings
        if time.monotonic() - began > self._pace.round_seconds:
            return True
        if self._accepted < min(rules.min_replies, count):
            return False
        if self._accepted >= min(rules.sample, count) or self._waited:
            return True
        return not any(self._is_awaited(client) for client in self._asked)

    @property
    def _waited(self) -> bool:
        """Whether the usual reply time is over, counted three times."""
        return time.monotonic() - self._sent > self._waiting.seconds

    def _is_awaited(self, client: int) -> bool:
        lost, sites = self._sites.lost.get(client, -math.inf), self._sites
        soon = time.monotonic() - lost < self._pace.round_seconds
        here = client in sites.by_client or soon or sites.expects_more
        return here and not self._asked[client].done

    def _send(self, began: float, kind: str = "round") -> None:
        """Sends each node one request, for all of its clients that still have to be asked."""
        due: dict[int, list[int]] = {}
        for client, asked in self._asked.items():
            site = self._sites.by_client.get(client)
            if asked.done or site is None or (asked.request and asked.node == site.node):
                continue
            if asked.tries == _TRIES:
                self._refuse(client, f"no answer to {_TRIES} messages")
                continue
            due.setdefault(site.node, []).append(client)
        requests: dict[int, Envelope] = {}
        for node, clients in due.items():
            requests[node] = request = self._request(kind, clients)
            self._open[id(request)] = (request, clients)
            for client in clients:
                asked = self._asked[client]
                asked.request, asked.node, asked.tries = request, node, asked.tries + 1
        left = self._pace.round_seconds - (time.monotonic() - began)
        group = str(self._ledger.position)
        for node, size in self._post.send(requests, max(left, 5.0), group).items():
            now = time.monotonic()
            self._sent = min(self._sent, now)
            self._asked[due[node][0]].down += size
            for client in due[node]:
                self._asked[client].sent = now
            if kind == "round":
                self._server.sent(*due[node])

    def _request(self, kind: str, clients: list[int]) -> Envelope:
        """A request for some clients of one site, with the records that its replica lacks."""
        first, site = self._asked[clients[0]], self._sites.by_client[clients[0]]
        plan, stands = first.plan, self._stands(site)
        if stands != plan.round - len(plan.records):
            again = self._server.rejoin if kind == "round" else self._server.rest
            first.plan = plan = again(clients[0], stands)
        facts: dict[str, Any] = {}
        if site.run != plan.run:
            facts["identity"] = self._ledger.identity.text
        if len(clients) < len(site.clients):
            facts["clients"] = clients
        same = plan_to_bytes(plan.for_client(0))  # what is equal is uploaded once
        return Envelope(kind, facts, same)

    def _position_of(self, client: int) -> int:
        """Where a client's replica stands; at the end, if it is not known."""
        site = self._sites.by_client.get(client)
        return self._ledger.position if site is None else self._stands(site)

    def _stands(self, site: Site) -> int:
        """The position of a replica on this log; 0 if it has folded another log."""
        at, ledger = site.position, self._ledger
        on_it = at <= ledger.position and ledger.chain_at(at).hex() == site.chain
        return at if on_it else 0

    def _asked_by(self, answer: Answer) -> list[int]:
        """The clients for which this answers the last request; none if it is an older one.

        The size of the answer is noted at the first of them.
        """
        request, known = self._open.pop(id(answer.request), (None, []))
        clients = [client for client in known if self._asked[client].request is request]
        if clients:
            self._asked[clients[0]].up += answer.size
        return clients

    def _take(self, answer: Answer) -> None:
        if not (clients := self._asked_by(answer)):
            if answer.envelope.kind == "replies":  # of an earlier round
                self._take_late(answer)
            return
        if answer.envelope.kind == "replies":
            self._take_replies(answer, clients)
            return
        facts = answer.envelope.facts
        kind, reason = facts.get("error"), plain(facts.get("reason"))
        plan, site = self._asked[clients[0]].plan, self._sites.by_client.get(clients[0])
        if kind in (RESTARTED, BUSY, LOST):
            self._sites.lose(answer.node, reason, again=True)
        elif kind == CUT_SHORT:
            self._sites.cut_short(answer.node, reason)
        elif kind == UNKNOWN_RUN and site is not None:
            site.run = None
        elif kind == BEHIND and site is not None and is_whole(facts.get("position"), 0, 2**32):
            site.position, site.chain = facts["position"], str(facts.get("chain"))
            site.run = plan.run
        else:
            for client in clients:
                self._refuse(client, plain(f"{kind}: {reason}"))
            return
        for client in clients:
            self._asked[client].request = None

    def _take_late(self, answer: Answer) -> None:
        """Takes replies to a request of before, of clients for which the node still speaks."""
        try:
            for data in split(answer.envelope.body):
                reply = reply_from_bytes(data)
                site = self._sites.by_client.get(reply.client)
                if site is None or site.node != answer.node:
                    raise ProtocolError(f"a late reply of client {reply.client} from another node")
                if reply.client in self._asked:
                    self._asked[reply.client].up += len(data)
                self._tell(reply)
        except ProtocolError as error:
            self._reject(None, str(error))

    def _take_replies(self, answer: Answer, clients: list[int]) -> None:
        """Takes a site's replies for the clients that it was asked for.

        A client about whom the answer says nothing is asked again: a site answers for as many as
        fit into a message.
        """
        if (site := self._sites.by_client.get(clients[0])) is not None:
            plan = self._asked[clients[0]].plan
            site.position, site.chain, site.run = plan.round, plan.chain.hex(), plan.run
        missing = set(clients)
        try:
            for data in split(answer.envelope.body):
                reply = reply_from_bytes(data)
                if reply.client not in missing:
                    reason = f"{are(clients)} asked, and the answer is of client {reply.client}"
                    raise ProtocolError(reason)
                missing.discard(reply.client)
                self._take_reply(reply)
        except ProtocolError as error:
            for client in missing:
                self._reject(client, str(error))
                self._asked[client].done = True
            return
        for client, reason in _refusals(answer.envelope.facts):
            if client in missing:
                missing.discard(client)
                self._refuse(client, reason)
        for client in missing:
            self._asked[client].request = None

    def _take_reply(self, reply: Reply) -> None:
        asked = self._asked[reply.client]
        asked.done = True
        if self._tell(reply):
            seconds = time.monotonic() - asked.sent
            slow = seconds > self._waiting.seconds
            self._present.replies[reply.client] = ReplyTime(seconds, True, slow)
            self._waiting.accepted(seconds)

    def _tell(self, reply: Reply) -> bool:
        verdict = self._server.tell(reply)
        if verdict.accepted:
            self._accepted += 1
        else:
            log.error("client %d is refused: %s", reply.client, verdict.reason)
        return verdict.accepted

    def _reject(self, client: int | None, reason: str) -> None:
        """Refuses what came instead of a reply."""
        self._server.refuse(client, self._ledger.position, reason)
        log.error("client %s is refused: %s", client, plain(reason))

    def _refuse(self, client: int, reason: str) -> None:
        asked = self._asked[client]
        asked.done = True
        self._ledger.refuse(client, asked.plan.round, reason)
        log.error("client %d does not take part in round %d: %s", client, asked.plan.round, reason)

    def _note_missing(self) -> None:
        """Notes which clients were sent the plan, and had not answered when the round was over."""
        for client, asked in self._asked.items():
            if asked.sent and not asked.done:
                seconds = time.monotonic() - asked.sent
                self._present.replies[client] = ReplyTime(seconds, False, self._waited)

    def _note_sizes(self, number: int) -> None:
        sizes = {client: (a.up, a.down) for client, a in self._asked.items() if a.down}
        self._ledger.note_messages(number, sizes)


def _refusals(facts: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The clients for which a site gives a reason instead of a reply."""
    told = facts.get("refused")
    for one in told if isinstance(told, list) else []:
        if isinstance(one, list) and len(one) == 2 and is_whole(one[0], 0, MAX_STREAM):
            yield one[0], plain(one[1])
