"""Features of an answer's form that may influence a voter: its length and its markdown.

LM Arena's style control ("Does style matter?", 2024) puts the differences of both answers in these
into the logistic regression of the ratings, beside the models.
"""

from __future__ import annotations

import re

from mmrlhf.text.word_counts import count_words

STYLE_NAMES = ("length", "headings", "list items", "bold")
_HEADING = re.compile(r"^ {0,3}#{1,6}\s", re.M)
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,3}[.)])\s", re.M)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")


def style_counts(text: str) -> tuple[int, ...]:
    """Return the words, headings, list items and bold passages of an answer."""
    return count_words(text), *(len(pattern.findall(text)) for pattern in (_HEADING, _LIST_ITEM, _BOLD))


def style_difference(first: str, second: str) -> tuple[float, ...]:
    """Return (a - b) / (a + b) for each count of two answers, from -1 to 1; 0 where both have
    none."""
    pairs = zip(style_counts(first), style_counts(second), strict=True)
    return tuple((a - b) / (a + b) if a + b else 0.0 for a, b in pairs)
