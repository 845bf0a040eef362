"""Show text from data as text: nothing in it affects the page or other text."""

from __future__ import annotations

import unicodedata

BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that change the order in which the characters after them appear."""


def visible(text: str) -> str:
    """Replace control codes and marks of direction, each by one visible character.

    Offsets do not change. Line breaks and tabs are kept (of CR LF, the first becomes a space), as
    are the joiners that emoji and some scripts need. Jinja escapes markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible_character, text.replace("\r\n", " \n")))


def _visible_character(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    if character < " ":
        return chr(0x2400 + ord(character))  # its picture, such as ␛
    if character in BIDI_CONTROLS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return "\N{REPLACEMENT CHARACTER}"
    return character
