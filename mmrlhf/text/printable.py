"""Make text from data or a server safe to show on a terminal."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line with text of an error, without its full stop, or its type's name."""
    lines = (line.strip().rstrip(".:") for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def printable(text: str, keep: str = "") -> str:
    """Replace characters that control a terminal, except those in `keep`.

    These are control codes, including the start of escape sequences, and Unicode's marks that
    change the direction of the following text. Lone surrogates are replaced too.
    """
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)
