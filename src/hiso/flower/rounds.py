"""The server's rounds over Flower: sends plans, handles answers, and decides how long to wait."""

from __future__ import annotations

import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from hiso.core.identity import Identity
from hiso.core.plain import plain
from hiso.errors import ProtocolError, RunConflict, SettingsError
from hiso.flower.envelope import BEHIND, BUSY, LOST, RESTARTED, UNKNOWN_RUN, Envelope
from hiso.flower.exchange import Answer, Post
from hiso.flower.sites import Site, Sites
from hiso.flower.waiting import Waiting
from hiso.ring.accept.quarantine import FAULTS, WINDOW
from hiso.ring.accept.replies import is_whole
from hiso.ring.messages import Plan
from hiso.ring.server import Aborted, Closed, Server
from hiso.ring.wire import plan_to_bytes, reply_from_bytes
from hiso.run.identity import check_identity

log = logging.getLogger(__name__)

_POLL = 0.05
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
    post: Post, sites: Sites, expected: Callable[[int], Identity], start_with: int
) -> Identity:
    """Waits for `start_with` clients with the same identity, and returns this identity.

    Args:
        post: The messages.
        sites: The clients.
        expected: Returns the part of the identity known from the server's own settings, for a
            given number of labels; raises a `SettingsError` for an unsuitable number.
        start_with: How many clients must have the same identity.
    """
    while True:
        _greet(post, sites)
        for site in list(sites.by_client.values()):
            if wrong := differences(expected, site.identity):
                reason = wrong + " (here, then there). Give both the same settings"
                sites.refuse(site, f"client {site.client} was set up for another run: {reason}")
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

    def __init__(self, post: Post, sites: Sites, server: Server, pace: Pace) -> None:
        self._post, self._sites, self._server, self._pace = post, sites, server, pace
        self._ledger = server.ledger
        self._asked: dict[int, _Asked] = {}
        self._accepted = 0
        self._waiting = Waiting(pace.round_seconds)
        self._sent = math.inf  # when the first plans of the open round were sent

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
        began = self._begin({plan.client: _Asked(plan) for plan in self._server.ask()})
        number = self._ledger.position
        while not self._is_over(began):
            for answer in self._hear():
                self._take(answer)
            self._send(began)
            time.sleep(_POLL)
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
        began, digests, end = self._begin({}), dict[int, int](), self._ledger.position
        while time.monotonic() - began < self._pace.round_seconds:
            for answer in self._hear():
                if (client := self._asked_by(answer)) is None:
                    continue
                asked, facts = self._asked[client], answer.envelope.facts
                asked.done = True
                asked.up += answer.size
                digest = str(facts.get("digest"))
                if facts.get("position") == end and re.fullmatch("[0-9a-f]{16}", digest):
                    digests[client] = int(digest, 16)
                else:
                    log.warning("client %d at the end: %s", client, plain(facts.get("reason")))
            for client, site in self._sites.by_client.items():
                if client not in self._asked:
                    self._asked[client] = _Asked(self._server.rest(client, self._stands(site)))
            self._send(began, kind="fold")
            here = self._sites.by_client.keys() & self._asked.keys()
            done = [self._asked[client].done for client in here]
            whole = all(done) and not self._sites.expects_more
            if self._asked and (whole or (2 * sum(done) > len(done) and self._waited)):
                break
            time.sleep(_POLL)
        self._note_sizes(end)
        for digest, votes in Counter(digests.values()).most_common(1):
            if 2 * votes > len(digests):
                return digest, len(digests)
        return None, len(digests)

    def _hear(self) -> list[Answer]:
        answers = _greet(self._post, self._sites)
        for site in list(self._sites.by_client.values()):
            try:
                check_identity(self._ledger.identity, site.identity)
            except RunConflict as error:
                self._sites.refuse(site, f"client {site.client}: {error}")
        return answers

    def _begin(self, asked: dict[int, _Asked]) -> float:
        self._asked, self._accepted, self._sent = asked, 0, math.inf
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
        requests: dict[int, Envelope] = {}
        for client, asked in self._asked.items():
            site = self._sites.by_client.get(client)
            if (
                asked.done
                or site is None
                or (asked.request is not None and asked.node == site.node)
            ):
                continue
            if asked.tries == _TRIES:
                self._refuse(client, asked, f"no answer to {_TRIES} messages")
                continue
            stands = self._stands(site)
            if stands < asked.plan.round - len(asked.plan.records):
                asked.plan = self._server.rejoin(client, stands)
            facts = {"identity": self._ledger.identity.text} if site.run != asked.plan.run else {}
            same = plan_to_bytes(asked.plan.for_client(0))  # what is equal is uploaded once
            asked.request = Envelope(kind, facts, same)
            asked.node, asked.tries = site.node, asked.tries + 1
            requests[site.node] = asked.request
        left = self._pace.round_seconds - (time.monotonic() - began)
        group = str(self._ledger.position)
        for node, size in self._post.send(requests, max(left, 5.0), group).items():
            for client, asked in self._asked.items():
                if asked.node == node:
                    asked.down += size
                    asked.sent = time.monotonic()
                    self._sent = min(self._sent, asked.sent)
                    if kind == "round":
                        self._server.sent(client)

    def _stands(self, site: Site) -> int:
        """The position of a replica on this log; 0 if it has folded another log."""
        at, ledger = site.position, self._ledger
        on_it = at <= ledger.position and ledger.chain_at(at).hex() == site.chain
        return at if on_it else 0

    def _asked_by(self, answer: Answer) -> int | None:
        """The client to whose open request this is the answer."""
        return next((c for c, a in self._asked.items() if a.request is answer.request), None)

    def _take(self, answer: Answer) -> None:
        if (client := self._asked_by(answer)) is None:
            if answer.envelope.kind == "reply":  # of an earlier round
                self._tell(answer)
            return
        asked, facts = self._asked[client], answer.envelope.facts
        asked.up += answer.size
        if answer.envelope.kind == "reply":
            asked.done = True
            if site := self._sites.by_client.get(client):
                site.position, site.run = asked.plan.round, asked.plan.run
                site.chain = asked.plan.chain.hex()
            self._tell(answer, client)
            return
        kind, reason = facts.get("error"), plain(facts.get("reason"))
        site = self._sites.by_client.get(client)
        if kind in (RESTARTED, BUSY, LOST):
            asked.request = None
            self._sites.lose(answer.node, reason, again=True)
        elif kind == UNKNOWN_RUN and site is not None:
            asked.request, site.run = None, None
        elif kind == BEHIND and site is not None and is_whole(facts.get("position"), 0, 2**32):
            asked.request, site.position = None, facts["position"]
            site.chain, site.run = str(facts.get("chain")), asked.plan.run
        else:
            self._refuse(client, asked, plain(f"{kind}: {reason}"))

    def _tell(self, answer: Answer, client: int | None = None) -> None:
        try:
            reply = reply_from_bytes(answer.envelope.body)
        except ProtocolError as error:
            self._server.refuse(client, self._ledger.position, str(error))
            log.error("client %s is refused: %s", client, plain(error))
            return
        if client is not None and reply.client != client:
            reason = f"client {client} was asked, and answered as client {reply.client}"
            self._server.refuse(client, self._ledger.position, reason)
            log.error("%s", reason)
            return
        if client is None and (late := self._asked.get(reply.client)) is not None:
            late.up += answer.size
        verdict = self._server.tell(reply)
        if verdict.accepted:
            self._accepted += 1
            if client is not None:
                self._waiting.accepted(time.monotonic() - self._asked[client].sent)
        else:
            log.error("client %d is refused: %s", reply.client, verdict.reason)

    def _refuse(self, client: int, asked: _Asked, reason: str) -> None:
        asked.done = True
        self._ledger.refuse(client, asked.plan.round, reason)
        log.error("client %d does not take part in round %d: %s", client, asked.plan.round, reason)

    def _note_sizes(self, number: int) -> None:
        sizes = {client: (a.up, a.down) for client, a in self._asked.items() if a.down}
        self._ledger.note_messages(number, sizes)
