"""A worker whose answers are altered on their way to the SuperLink.

python -m tests.flower.evil SUPERLINK FOLDER SETTINGS lie|hold: client 2. Notes in `sizes` the bytes
of each plan and of its answer. With `lie` it spoils every reply in another way; with `hold` it
spoils nothing, but makes `holding` in FOLDER when a plan has come, and keeps the reply until there
is a file `go`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np

from hiso.flower.access import Access
from hiso.flower.envelope import Envelope, join, split
from hiso.flower.fleet import Fleet
from hiso.flower.logs import log_to
from hiso.flower.network import Network
from hiso.flower.worker import Worker
from hiso.ring.messages import Reply
from hiso.ring.wire import reply_from_bytes, reply_to_bytes
from hiso.run.settings import parse_settings, read_toml

CLIENT = 2


def with_nan(reply: Reply) -> bytes:
    return reply_to_bytes(replace(reply, scalars=np.full_like(reply.scalars, np.nan)))


def with_a_wrong_digest(reply: Reply) -> bytes:
    return reply_to_bytes(replace(reply, digest=reply.digest ^ 1))


def for_another_round(reply: Reply) -> bytes:
    return reply_to_bytes(replace(reply, round=reply.round + 1))


def of_another_shape(reply: Reply) -> bytes:
    return reply_to_bytes(replace(reply, scalars=np.ones((7, 7), np.float32)))


def cut_short(reply: Reply) -> bytes:
    return reply_to_bytes(reply)[:-1]


def in_the_name_of_another(reply: Reply) -> bytes:
    return reply_to_bytes(replace(reply, client=0))


LIES: list[Callable[[Reply], bytes]] = [
    with_nan,
    with_a_wrong_digest,
    for_another_round,
    cut_short,
    in_the_name_of_another,
    of_another_shape,  # never asked for: five faults are enough
]


def spoiled(answer: Envelope) -> Envelope:
    if answer.kind != "replies":
        return answer
    reply = reply_from_bytes(*split(answer.body))
    return Envelope("replies", {}, join([LIES[reply.round % len(LIES)](reply)]))


def main(superlink: str, folder: Path, settings: Path, way: str) -> None:
    folder.mkdir(exist_ok=True)
    log_to(folder / "front.log")
    worker = Worker(parse_settings(read_toml(settings)), folder, own=None, alive=lambda: None)

    def answer(request: Envelope) -> Future[Envelope]:
        future = Future[Envelope]()
        honest = worker.handle(request, [CLIENT])
        given = spoiled(honest) if way == "lie" else honest
        if request.kind != "hello":
            with (folder / "sizes").open("a") as sizes:
                print(len(given.to_bytes()), len(request.to_bytes()), file=sizes)
        if given.kind == "replies" and way == "hold":
            threading.Thread(target=hold, args=(future, given), daemon=True).start()
        else:
            future.set_result(given)
        return future

    def hold(future: Future[Envelope], given: Envelope) -> None:
        (folder / "holding").touch()
        while not (folder / "go").exists():
            threading.Event().wait(0.05)
        future.set_result(given)

    Network(Fleet(Access(superlink, None, None), folder), answer).run()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
