"""Sites without model and data: connections to a SuperLink that answer every plan at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from hiso.core.identity import Identity
from hiso.flower.access import Access
from hiso.flower.envelope import Envelope, join
from hiso.flower.fleet import Fleet
from hiso.flower.network import Network
from hiso.ring.messages import Reply
from hiso.ring.wire import hash_question, plan_from_bytes, reply_to_bytes


class Stub:
    """One site with these clients; their scalars are zeros, but for the first."""

    def __init__(
        self, address: str, folder: Path, clients: Sequence[int], identity: Identity
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._clients = list(clients)
        self._facts = {"clients": self._clients, "weights": 1, "identity": identity.text}
        self._facts |= {"run": None, "position": 0, "chain": ""}
        self.network = Network(Fleet(Access(address, None, None), folder), self._answer)
        self._thread = threading.Thread(target=self.network.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.network.stop()
        self._thread.join()

    def _answer(self, request: Envelope) -> Future[Envelope]:
        future = Future[Envelope]()
        future.set_result(self._reply(request))
        return future

    def _reply(self, request: Envelope) -> Envelope:
        if request.kind == "hello":
            return Envelope("hello", self._facts)
        plan = plan_from_bytes(request.body)
        self._facts |= {"run": plan.run, "position": plan.round, "chain": plan.chain.hex()}
        if request.kind == "fold":
            return Envelope("folded", {"position": plan.round, "digest": "0"})
        scalars = np.zeros((plan.steps, plan.directions), np.float32)
        scalars[0, 0] = 1
        replies: list[bytes] = []
        for client in request.facts.get("clients", self._clients):
            question = hash_question(plan.for_client(client))
            reply = Reply(plan.run, plan.round, client, question, 0, scalars, None, 0.5, 1)
            replies.append(reply_to_bytes(reply))
        return Envelope("replies", {}, join(replies))
