"""A pseudo-terminal for processes of tests."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios


class Terminal:
    """A pseudo-terminal, and what a process has shown on it so far."""

    def __init__(self, columns: int) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.name, self.text = os.ttyname(theirs), ""
        self._theirs = theirs

    def read_until(self, process, pattern: str) -> None:
        """Reads until the pattern is seen, or the process has ended."""
        os.set_blocking(self.ours, False)
        while not re.search(pattern, self.text):
            alive = process.is_alive()
            try:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
            except BlockingIOError:
                if not alive:
                    return
                process.join(0.01)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.text)


NOWHERE = r"(?!)"  # never matches: read to the end
