"""A worker that lies: it hands requests on to an honest one, and spoils each answer in its way.

python -m tests.flower.evil FOLDER HONEST: listens in FOLDER as a worker does.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hiso.federation.protocol import Reply
from hiso.federation.wire import reply_from_bytes, reply_to_bytes
from hiso.flower.dial import ask, socket_path
from hiso.flower.envelope import Envelope, receive, send


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
    of_another_shape,
    cut_short,
    in_the_name_of_another,
]


def main(folder: Path, honest: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(socket_path(folder))
        door.listen()
        while True:
            connection, _ = door.accept()
            with connection:
                answer = ask(honest, receive(connection), 60)
                if answer.kind == "reply":
                    reply = reply_from_bytes(answer.body)
                    answer = Envelope("reply", {}, LIES[reply.round % len(LIES)](reply))
                send(connection, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
