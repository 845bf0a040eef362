"""Compare the numbers in a question and in its answer: four buses asked for, two stated. No
torch."""

from __future__ import annotations

import re
from typing import Literal

from mmrlhf.text.answer_words import WORD, content_words, singularize
from mmrlhf.text.words import NUMBER_VALUES, TENS

Bound = Literal["exact", "at least", "at most", "about"]
_VALUES = NUMBER_VALUES | {f"{ten}-{one}": TENS[ten] + NUMBER_VALUES[one] for ten in TENS for one in list(NUMBER_VALUES)[1:10]}
_VALUES |= {"dozen": 12, "single": 1, "none": 0, "no": 0}
_NUMBER = (
    rf"(?<![\w.,-])(?:(?P<before>at least|at most|more than|over|fewer than|less than|under|up to|about|around|roughly"
    rf"|approximately|nearly|almost|exactly|only|just|not) )?(?:an? )?"
    rf"(?P<number>no(?! (?:other|more|additional|further)\b)|\d{{1,4}}|{'|'.join(sorted(_VALUES, key=len, reverse=True))})(?![\w.-]*\w)"
    rf"(?P<after> or (?:more|fewer|less))?"
)
_COUNT = re.compile(rf"{_NUMBER}(?P<nouns>(?: (?!of\b|in\b|on\b|and\b|or\b|but\b|at\b|here\b|there\b)[^\W\d_]+){{0,3}})")
_BOUNDS: dict[str, tuple[Bound, int]] = {
    "at least": ("at least", 0),
    "more than": ("at least", 1),
    "over": ("at least", 1),
    "at most": ("at most", 0),
    "up to": ("at most", 0),
    "fewer than": ("at most", -1),
    "less than": ("at most", -1),
    "under": ("at most", -1),
    **dict.fromkeys(("about", "around", "roughly", "approximately", "nearly", "almost"), ("about", 0)),
}
"""Words before a number -> the kind of bound, and the number to add."""
_NOT_COUNTED = re.compile(
    r"\bone (?:of|is|can|has|side|hand|another|more)\b|\b(?:this|that|the|any|no|each|every|another|which) one\b"
)
"""Phrases with a one that counts nothing: "one of the cars", "one can see"."""
_STATES_COUNT = re.compile(
    r"^\W*(?:(?:there(?:'s| is| are)|it(?:'s| is| has)|they are|(?:i|we) (?:can )?(?:only |just |clearly )?(?:see|count)) )?$"
)
"""Text allowed before a number without a noun: "There are two.", "I count two"."""
_ENDS = re.compile(r"^\s*(?:$|[.,;!]|of (?:them|these|those)\b|in (?:the|this)\b|here\b|there\b|visible\b|shown\b|present\b)")


_ASKS_EXISTENCE = re.compile(
    r"\W*(?:(?:is|are|was|were|do|does|can|could) (?:there|you|we|i)\b|do(?:es)? (?:the|this) \w+ (?:show|contain|have|depict|include)\b)"
)
"""Questions about the number of objects in an image."""
_BETWEEN = re.compile(r"(?:\s|,|\b(?:an?|the|total|number|of|only|just|see|in|this|that|image|picture|photo|scene|room)\b)*")
"""Words allowed before the number; other nouns are not, as in "a car next to two trees"."""


def count_verdict(clause: str, question: str) -> Literal["yes", "no"] | None:
    """Return whether the number in a clause is the one in question; None if it has no such number.

    Both are in lower case. "Two red buses" and "there are two" answer "Are there four buses?";
    "two cars" does not. Bounds count: "three" answers "at least two" with yes.
    """
    asked = _asked_count(question)
    if asked is None:
        return None
    (bound, number), noun = asked
    clause = _NOT_COUNTED.sub(" ", clause)
    total: tuple[Bound, int] | None = None
    for match in _COUNT.finditer(clause):
        nouns = [singularize(word) for word in WORD.findall(match["nouns"])]
        is_bare = bool(_STATES_COUNT.match(clause[: match.start()]) and (not nouns) and _ENDS.match(clause[match.end() :]))
        if noun and noun not in nouns and not is_bare:
            continue
        if match["before"] == "not" or clause[: match.start()].rstrip().endswith(("not", "n't")):
            if _number_and_bound(match) == (bound, number):
                return "no"
            continue
        counted = _number_and_bound(match)
        if total is None:
            total = counted
        elif clause[: match.start()].endswith(" and ") and total[0] == counted[0] == "exact":
            total = "exact", total[1] + counted[1]  # two red buses and two blue buses
    return None if total is None else _compare(*total, bound, number)


def _asked_count(question: str) -> tuple[tuple[Bound, int], str] | None:
    """Return the number in a question, with its bound, and the counted noun, or "".

    None without a number, or with several.
    """
    question = _NOT_COUNTED.sub(" ", re.split(r"[?\n]", question)[0])
    asks, matches = _ASKS_EXISTENCE.match(question), list(_COUNT.finditer(question))
    if asks is None or len(matches) != 1 or not _BETWEEN.fullmatch(question[asks.end() : matches[0].start()]):
        return None
    nouns = content_words(matches[0]["nouns"])
    return _number_and_bound(matches[0]), nouns[-1] if nouns else ""


def _number_and_bound(match: re.Match[str]) -> tuple[Bound, int]:
    bound, offset = _BOUNDS.get(match["before"] or "", ("exact", 0))
    if match["after"]:
        bound = "at least" if match["after"].endswith("more") else "at most"
    number = match["number"]
    return bound, (int(number) if number.isdigit() else _VALUES[number]) + offset


def _compare(stated_bound: Bound, stated: int, asked_bound: Bound, asked: int) -> Literal["yes", "no"] | None:
    """Return whether a stated number, or every number of a stated range, fits the question."""
    if "about" in (stated_bound, asked_bound):
        return "yes" if stated == asked else None
    low = 0 if stated_bound == "at most" else stated
    high = stated if stated_bound != "at least" else 10**6
    asked_low = 0 if asked_bound == "at most" else asked
    asked_high = asked if asked_bound != "at least" else 10**6
    if asked_low <= low and high <= asked_high:
        return "yes"
    return "no" if high < asked_low or low > asked_high else None
