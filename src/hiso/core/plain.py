"""Text that somebody else has written, made fit for a log, a terminal, or a file."""

from __future__ import annotations

LONGEST = 1000
"""Characters that are left of a text."""


def plain(text: object) -> str:
    r"""The text as one line of printable characters, at most `LONGEST`.

    Line ends, tabs and runs of spaces become one space each, so nobody can write a line of a log
    that looks like ours; other characters that do not print (escape sequences, marks that turn the
    direction of writing, lone surrogates) become their escapes, such as \x1b.
    """
    words = " ".join(str(text)[: 4 * LONGEST].split())
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words
    )
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
