"""Communication with a worker on this machine, through the socket in its folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from hiso.errors import ProtocolError
from hiso.flower.envelope import BUSY, MISSING, Envelope, receive, send

SOCKET = "worker.sock"


def socket_path(folder: Path) -> str:
    """The shortest path of the worker's socket; the system allows some 100 characters.

    Raises:
        ProtocolError: The path is too long.
    """
    path = str(folder.absolute() / SOCKET)
    path = min(path, os.path.relpath(path), key=len)
    if len(os.fsencode(path)) > 100:
        raise ProtocolError(f"{path} is too long for a socket: choose a folder with a shorter path")
    return path


def ask(folder: Path, request: Envelope, timeout: float) -> Envelope:
    """Sends a request to the worker in `folder`; the answer may be an error."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(max(timeout, 0.1))
        try:
            connection.connect(socket_path(folder))
            send(connection, request)
            return receive(connection)
        except TimeoutError:
            return Envelope.of_error(BUSY, f"the worker in {folder} has not answered in time")
        except (OSError, ProtocolError) as error:
            return Envelope.of_error(
                MISSING,
                f"no worker answers in {folder} ({error}): start it",
            )
