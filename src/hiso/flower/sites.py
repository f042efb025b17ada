"""The reachable clients, with the node and the position of each."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field

from hiso.core.identity import Identity
from hiso.core.plain import plain
from hiso.core.record import MAX_STREAM
from hiso.errors import ProtocolError
from hiso.flower.envelope import CUT_SHORT, Envelope
from hiso.flower.exchange import Answer, Post
from hiso.flower.owners import Owners
from hiso.ring.accept.replies import is_whole
from hiso.ring.ledger.runfile import Owner
from hiso.run.formatting import are, named

log = logging.getLogger(__name__)

HELLO_TTL = 300.0
_AGAIN = 1.0
"""Seconds until `hello` is sent again to a node whose worker did not answer."""
_LONGEST_PAUSE = 600.0
_REFUSED_AGAIN = 30.0
"""The same, if the worker has another identity."""
_LONGEST_IDENTITY = 2**20
"""Largest number of characters of an identity."""
_INTRODUCTION = 10.0
"""Longest wait for the first answer of a new node, in seconds; an idle worker looks every 3 s."""
_SAID = ("clients", "position", "run", "chain", "weights", "data", "identity")
_MARK = re.compile("[0-9a-f]{32}")
_LOOK = 1.0
"""Seconds between readings of Flower's list of nodes."""


@dataclass
class Site:
    """A node with its replica and one or several clients, by its last answer to `hello`.

    Attributes:
        data: The mark of its data, see `hiso.ring.site.Site.mark_data`.
        belongs: Whether the identity has been found to be that of the run.
    """

    node: int
    clients: tuple[int, ...]
    position: int
    chain: str
    run: str | None
    weights: int
    data: str | None
    identity: Identity = field(repr=False)
    belongs: bool = False


class Sites:
    """Sends `hello` to new nodes, and keeps the clients behind them.

    A client is identified by the number that its worker reports, never by a node's id; a worker
    may report several. If two nodes report the same client, the key that owns the number decides
    (see `Owners`). Where no key does, or both nodes have it, the last report counts, because a site
    with a new folder may have another id.

    Attributes:
        run: Id of the run, when it is known.
        owners: Which key owns which number.
        by_client: The reachable sites; one that has several clients stands there for each.
        lost: For each lost client, when it was lost.
    """

    def __init__(self, post: Post, clients: int) -> None:
        self._post, self._clients = post, clients
        self.run: str | None = None
        self.owners = Owners()
        self.by_client: dict[int, Site] = {}
        self._by_node: dict[int, Site] = {}
        self.lost: dict[int, float] = {}
        self._known: dict[int, Owner | None] = {}
        self._new: dict[int, float] = {}
        self._again: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._refused: dict[tuple[int, ...], str] = {}
        self._strangers: dict[int, str] = {}
        self._looked = 0.0

    def look(self) -> None:
        """Sends `hello` to new nodes, and to nodes whose worker was missing."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        nodes = self._post.nodes()
        for node in self._known.keys() - nodes.keys():
            self._new.pop(node, None)
            self.lose(node, "its node is gone", again=False)
        due = {node for node, at in self._again.items() if at <= now and node in nodes}
        new = nodes.keys() - self._known.keys()
        self._new |= dict.fromkeys(new, now)
        greeted = new | due
        self._known = nodes
        for node in greeted:
            self._again.pop(node, None)
        self._post.send({node: Envelope("hello", {"run": self.run}) for node in greeted}, HELLO_TTL)

    def all(self) -> list[Site]:
        """Each site that has reachable clients."""
        return list(self._by_node.values())

    @property
    def expects_more(self) -> bool:
        """Whether a node that has just appeared has not said yet which client it is."""
        now = time.monotonic()
        return any(now - at < _INTRODUCTION for at in self._new.values())

    def lose(self, node: int, reason: str, *, again: bool) -> None:
        """Removes the worker behind a node, because it does not answer; if `again`, retries
        later.
        """
        if gone := self._remove(node):
            log.warning("%s unreachable: %s", are(gone), plain(reason))
            self.lost |= dict.fromkeys(gone, time.monotonic())
        if again:
            self._again[node] = time.monotonic() + _AGAIN

    def cut_short(self, node: int, reason: str) -> None:
        """Removes the worker behind a node, which has kept the server waiting for its answer, and
        retries after a pause that doubles each time, from 1 s to 600 s.
        """
        pause = self._pauses.get(node, _AGAIN)
        self._pauses[node] = min(2 * pause, _LONGEST_PAUSE)
        self.lose(node, reason, again=False)
        self._again[node] = time.monotonic() + pause

    def refuse(self, site: Site, reason: str) -> None:
        """Leaves a site's clients out until a later `hello` gets another answer."""
        if self._refused.get(site.clients) != reason:
            log.error("%s: %s", named(site.clients), plain(reason))
        self._refused[site.clients] = reason
        self._remove(site.node)
        self._again[site.node] = time.monotonic() + _REFUSED_AGAIN

    def _remove(self, node: int) -> list[int]:
        """Forgets a node, and returns its clients, without those that other nodes took over."""
        if (site := self._by_node.pop(node, None)) is None:
            return []
        gone = [client for client in site.clients if self.by_client.get(client) is site]
        for client in gone:
            del self.by_client[client]
        return gone

    def greet(self, answer: Answer) -> None:
        """Handles an answer to `hello`."""
        facts = answer.envelope.facts
        self._new.pop(answer.node, None)
        if answer.envelope.kind != "hello":
            reason = str(facts.get("reason", "no hello"))
            if facts.get("error") == CUT_SHORT:
                self.cut_short(answer.node, reason)
                return
            if answer.node not in self._by_node and self._strangers.get(answer.node) != reason:
                log.warning("node %d is not a client: %s", answer.node, plain(reason))
                self._strangers[answer.node] = reason
            self.lose(answer.node, reason, again=True)
            return
        clients, position, run, chain, weights, data, identity = map(facts.get, _SAID)
        if (
            not isinstance(clients, list)
            or not clients
            or len(clients) > self._clients
            or not all(is_whole(client, 0, self._clients - 1) for client in clients)
            or not is_whole(position, 0, MAX_STREAM)
            or not is_whole(weights, 1, 2**63)
            or not isinstance(chain, str)
            or not (run is None or isinstance(run, str))
            or not (data is None or (isinstance(data, str) and _MARK.fullmatch(data)))
            or not isinstance(identity, str)
            or len(identity) > _LONGEST_IDENTITY
        ):
            claimed = plain(f"{clients!r:.200}")
            log.error("node %d: an invalid answer to hello, clients %s", answer.node, claimed)
            return
        given = tuple(sorted(set(clients)))
        try:
            found = Identity.parse(identity)
        except ProtocolError as error:
            log.error("node %d, %s: %s", answer.node, named(given), plain(error))
            return
        if found.partition is not None:  # not known in a deployment, only in one process
            log.error("node %d, %s: an identity of a simulation", answer.node, named(given))
            return
        owner = self._known.get(answer.node)
        if not (own := tuple(self.owners.claim(given, owner))):
            self._again[answer.node] = time.monotonic() + _REFUSED_AGAIN
            return
        before = self._by_node.get(answer.node)
        self._remove(answer.node)
        site = Site(answer.node, own, position, chain, run, weights, data, found)
        self._by_node[answer.node] = site
        for client in own:
            self.by_client[client] = site
            self.lost.pop(client, None)
        if before is None or before.clients != own:
            whose = "no registered key" if owner is None else str(owner)
            log.info(
                "%s connected, at position %d, node %d, %s",
                are(own), position, answer.node, whose,
            )  # fmt: skip
