"""Text that somebody else has written, made fit for a log, a terminal, or a file."""

from __future__ import annotations

LONGEST = 1000
"""Characters that are left of a text."""


def plain(text: object) -> str:
    r"""The text as one line of printable characters, at most `LONGEST`.

    Line ends, tabs and other white space become a space each, so that nobody can forge a line of a
    log. Other characters that do not print (escape sequences, marks that change the direction of
    writing, lone surrogates) become their escapes, such as \x1b.
    """
    shown = "".join(map(_shown, str(text)[: LONGEST + 1]))
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def _shown(c: str) -> str:
    if c.isspace():
        return " "
    return c if c.isprintable() else c.encode("unicode_escape").decode("ascii")
