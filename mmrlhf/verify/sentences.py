"""Claims in words: as a phrase for open_clip, as a question for a model, and what a claim is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.claims import Lexicon
from mmrlhf.nouns import plural_of
from mmrlhf.records import Claim, InputError
from mmrlhf.verify.facts import COLOURS, EXCLUDES, INVERSE, MATERIALS, OPPOSED, SAME_RELATION, rivals

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPPOSITE = {"above": "below", "below": "above"}
"""Where another word is nearer than the one that facts are sorted under."""
NEAREST = 2
"""A count's foils are the numbers up to so far away."""


def phrase(claim: Claim, words: Lexicon) -> str:
    """A claim as a noun phrase, whether it is negated or not: "a red ring", "three rings", "a cat on a couch"."""
    if claim.kind == "count":
        return _counted(claim)
    noun = _one(f"{claim.value} {claim.subject}" if claim.kind == "attribute" else claim.subject, words)
    return f"{noun} {claim.relation} {_one(claim.target, words)}" if claim.kind == "relation" else noun


def shown(claim: Claim, words: Lexicon) -> str:
    """A claim as reports show it."""
    said = phrase(claim, words)
    return f"{'not ' if claim.negated else ''}{said}{' (hedged)' if claim.hedged else ''}"


def question(claim: Claim, words: Lexicon) -> str:
    """Whether a claim is true, negated or not, as a question to be answered yes or no."""
    many = claim.subject in words.sets["plural only"] if claim.kind != "count" else claim.value != "1"
    exactly = "exactly " if claim.kind == "count" else ""
    return f"{'Are' if many else 'Is'} there {exactly}{phrase(claim, words)} in the picture?"


def _one(noun: str, words: Lexicon) -> str:
    if noun.rpartition(" ")[2] in words.sets["plural only"] or noun in words.sets["plural only"]:
        return noun
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _counted(claim: Claim) -> str:
    number = int(claim.value)
    return f"{NUMBERS[number] if number < len(NUMBERS) else number} {claim.subject if number == 1 else plural_of(claim.subject)}"


# ---- foils ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foils:
    """What else might be: nouns for a noun, and groups of values of which a thing has one."""

    nouns: tuple[str, ...]
    groups: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, words: Lexicon, kept: Mapping[str, Any] | None = None) -> Foils:
        """Those of a lexicon, COCO's classes and the groups that facts are judged by, or what a calibration kept. Raises InputError."""
        kept = kept or {}
        nouns = kept.get("nouns", sorted(set(words.category.values())))
        groups = kept.get("groups", [COLOURS, MATERIALS, *OPPOSED])
        for name, rows in (("nouns", [nouns]), ("groups", groups)):
            lists = isinstance(rows, list) and all(isinstance(row, (list, set, frozenset)) for row in rows)
            if not lists or not all(isinstance(word, str) for row in rows for word in row):
                raise InputError(f"calibration: `{name}` must be words, not {rows!r}")
        return cls(tuple(nouns), tuple(frozenset(g) for g in groups))


def foils(claim: Claim, against: Foils, words: Lexicon) -> list[Claim]:
    """Claims of which none is true where this one is (of a noun: probably none). Empty where nothing is known to be its contrary."""
    if claim.kind == "object":
        return [replace(claim, subject=n) for n in against.nouns if not _akin(n, claim.subject, words)]
    if claim.kind == "attribute":
        return [replace(claim, value=v) for v in sorted(rivals(claim.value, against.groups))]
    if claim.kind == "count":
        number = int(claim.value)
        return [replace(claim, value=str(n)) for n in range(max(0, number - NEAREST), number + NEAREST + 1) if n != number]
    how = SAME_RELATION.get(claim.relation, claim.relation)
    if INVERSE.get(how) == how:
        return []  # as true the other way round
    swapped = [] if claim.subject == claim.target else [replace(claim, subject=claim.target, target=claim.subject)]
    other = OPPOSITE.get(claim.relation) or INVERSE.get(how)
    others = {other} if other else EXCLUDES.get(how, set())
    return [*swapped, *(replace(claim, relation=other) for other in sorted(others))]


def _akin(a: str, b: str, words: Lexicon) -> bool:
    """Whether one thing may have both names."""
    return a == b or a.endswith(f" {b}") or b.endswith(f" {a}") or words.of_coco(a) == words.of_coco(b) != ""
