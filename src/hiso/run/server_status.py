"""What the server of a deployment says of the present: `status.json` in the run's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from hiso.run.folder import write_text

Doing = Literal[
    "waiting for clients", "rounds", "last catch-up", "counting right answers", "nothing more"
]
_NAME = "status.json"


@dataclass(frozen=True)
class ReplyTime:
    """How a client answered the last plan that it was sent.

    Attributes:
        seconds: From the plan to its reply; or how long the server waited in vain.
        in_time: Whether a reply was accepted before the round closed.
        slow: Whether this was longer than the server waits once it has enough replies.
    """

    seconds: float
    in_time: bool
    slow: bool


@dataclass(frozen=True)
class ServerStatus:
    """What only the server application knows.

    Attributes:
        time: When this was written, Unix time.
        doing: What it does.
        asked: Clients that were asked in the open round, or in the last one.
        here: Clients that are connected.
        replies: How clients answered, as far as they were asked since the server was started.
    """

    time: float
    doing: Doing
    asked: list[int]
    here: list[int]
    replies: dict[int, ReplyTime] = field(default_factory=dict[int, ReplyTime])


_STATUS = TypeAdapter(ServerStatus)


def write_server_status(folder: Path, status: ServerStatus) -> None:
    """Replaces the file; readers see the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    write_text(folder / _NAME, _STATUS.dump_json(status).decode() + "\n")


def read_server_status(folder: Path) -> ServerStatus | None:
    """The content of the file; None if there is none, or it is not a whole status of a server."""
    try:
        return _STATUS.validate_json((folder / _NAME).read_bytes())
    except (OSError, ValidationError):
        return None
