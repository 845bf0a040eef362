"""Read a judge's reply: a verdict, a list or a rating."""

from __future__ import annotations

import json
import re
from typing import Any

from mmrlhf.text.answer_parsing import normalise

_NEGATOR = r"(?:\b(?:not(?! (?:only|just|merely)\b)|never|cannot|hardly|barely|scarcely|far from)|n't) "
_STOP = "but|and|or|so|yet|thus|hence|therefore|far|contradict\\w*|conflict\\w*|differ\\w*|deviat\\w*|disagree\\w*"
_WORDS_BETWEEN = rf"(?:(?!(?:{_STOP})\b)[\w-]+ ){{0,4}}"
"""Words between a negator and the negated word: not to be considered correct. An answer that does
not conflict with the correct one is not negated."""


def parse_verdict(reply: str, positive_word: str = "correct", negative_word: str = "incorrect") -> bool | None:
    """Return True for a judge's reply with the positive word, False for one with the negative word.

    A negated word counts as the other. A reply with both or neither gives None, as does a partially
    right answer.
    """
    text = normalise(reply).lower()
    verdicts: set[bool | None] = set()
    for match in re.finditer(
        rf"(?P<far>{_NEGATOR}{_WORDS_BETWEEN})?\b(?:(?P<partly>partially |partly |half )?(?P<right>{positive_word})|{negative_word})\b",
        text,
    ):
        if not match["right"]:
            is_negated = match["far"] is not None and len(match["far"].split()) < 3
            verdicts.add(is_negated)
        elif match["partly"] and not match["far"]:
            verdicts.add(None)
        else:
            verdicts.add(match["far"] is None)
    return verdicts.pop() if len(verdicts) == 1 else None


def parse_json_list(reply: str) -> list[Any] | None:
    """Return the JSON list in a judge's reply, with any text around it; None without one."""
    text = reply.rpartition("</think>")[2]
    start, end = text.find("["), text.rfind("]")
    try:
        values = json.loads(text[start : end + 1])
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, list) else None


def parse_rating(reply: str, max_rating: int) -> int | None:
    """Return the integer rating of a judge's reply, or the last of several.

    A negated one is none: not rating: 5. Returns None if there is no rating or if it exceeds
    `max_rating`.
    """
    text = normalise(reply).lower()
    ratings = re.findall(r"(?<!\bnot )\b(?:rating|score|rate)\b(?:[^\w\n]|is\b|of\b|:)*(\d+)(?![\d.]*\d)", text)
    if not ratings and re.fullmatch(r"\W*\d+\W*", text):
        ratings = re.findall(r"\d+", text)
    return int(ratings[-1]) if ratings and int(ratings[-1]) <= max_rating else None
