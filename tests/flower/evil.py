"""A worker that lies: it hands requests on to an honest one, and spoils each answer in its way.

python -m tests.flower.evil FOLDER HONEST [twice]: listens in FOLDER as a worker does, and notes in
`sizes` the bytes of each plan and of its answer. With `twice` it spoils nothing, but holds the
answer to a plan back until the same plan has come again, and then gives it both times.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hiso.flower.envelope import Envelope, receive, send
from hiso.flower.local_socket import ask, socket_path
from hiso.ring.messages import Reply
from hiso.ring.wire import reply_from_bytes, reply_to_bytes


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


def main(folder: Path, honest: Path, twice: bool) -> None:
    both = threading.Barrier(2)

    def serve(connection: socket.socket) -> None:
        with connection:
            request = receive(connection)
            answer = ask(honest, request, 60)
            if answer.kind == "reply" and twice:
                (folder / "holding").touch()
                both.wait()
            elif answer.kind == "reply":
                reply = reply_from_bytes(answer.body)
                answer = Envelope("reply", {}, LIES[reply.round % len(LIES)](reply))
            if request.kind in ("round", "fold"):
                with (folder / "sizes").open("a") as sizes:
                    print(len(answer.to_bytes()), len(request.to_bytes()), file=sizes)
            send(connection, answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(socket_path(folder))
        door.listen()
        while True:
            connection, _ = door.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), "twice" in sys.argv[3:])
