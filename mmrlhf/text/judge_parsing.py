"""Read a judge's reply: a verdict or a rating."""

from __future__ import annotations

import re

from mmrlhf.text.answer_parsing import normalise


def parse_verdict(reply: str, positive_word: str = "correct", negative_word: str = "incorrect") -> bool | None:
    """Return True for a judge's reply with the positive word, False for one with the negative word.

    A negated word counts as the other. A reply with both or neither gives None.
    """
    text = normalise(reply).lower()
    verdicts = set()
    for match in re.finditer(
        rf"(?P<not>(?:\bnot|n't) (?:\w+ )?)?\b(?:(?P<right>{positive_word})|(?P<wrong>{negative_word}))\b", text
    ):
        verdicts.add(bool(match["right"]) != bool(match["not"]))
    return verdicts.pop() if len(verdicts) == 1 else None


def parse_rating(reply: str, max_rating: int) -> int | None:
    """Return the integer rating of a judge's reply, or the last of several.

    Returns None if there is no rating or if it exceeds `max_rating`.
    """
    text = normalise(reply).lower()
    ratings = re.findall(r"\b(?:rating|score|rate)\b(?:[^\w\n]|is\b|of\b|:)*(\d+)(?![\d.]*\d)", text)
    if not ratings and re.fullmatch(r"\W*\d+\W*", text):
        ratings = re.findall(r"\d+", text)
    return int(ratings[-1]) if ratings and int(ratings[-1]) <= max_rating else None
