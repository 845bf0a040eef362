"""Claims in words: as a phrase for open_clip, as a question for a model, and what a claim is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim, InputError
from mmrlhf.text import words
from mmrlhf.text.plurals import pluralize
from mmrlhf.text.words import COLOURS
from mmrlhf.verifiers.facts import (
    EXCLUSIVE_RELATIONS,
    EXCLUSIVE_VALUES,
    INVERSE_RELATIONS,
    MATERIALS,
    RELATION_SYNONYMS,
    mutually_exclusive,
)

NUMBER_WORDS = ("no", *words.NUMBER_WORDS[1:11])
OPPOSITE_RELATIONS = {relation: words.OPPOSITE_RELATIONS[relation] for relation in ("above", "below")}
"""Where another word is nearer than the one that facts are sorted under."""
MAX_COUNT_OFFSET = 2
"""A count's foils are the numbers up to so far away."""


def claim_phrase(claim: Claim, lexicon: Lexicon) -> str:
    """A claim as a noun phrase, whether it is negated or not: "a red ring", "three rings", "a cat on a couch"."""
    if claim.kind == "count":
        return _count_phrase(claim)
    noun = _with_article(f"{claim.value} {claim.subject}" if claim.kind == "attribute" else claim.subject, lexicon)
    return f"{noun} {claim.relation} {_with_article(claim.target, lexicon)}" if claim.kind == "relation" else noun


def display(claim: Claim, lexicon: Lexicon) -> str:
    """A claim as reports show it."""
    text = claim_phrase(claim, lexicon)
    return f"{'not ' if claim.negated else ''}{text}{' (hedged)' if claim.hedged else ''}"


def claim_question(claim: Claim, lexicon: Lexicon) -> str:
    """Whether a claim is true, negated or not, as a question to be answered yes or no."""
    is_plural = claim.subject in lexicon.word_sets["plural only"] if claim.kind != "count" else claim.value != "1"
    exactly = "exactly " if claim.kind == "count" else ""
    return f"{'Are' if is_plural else 'Is'} there {exactly}{claim_phrase(claim, lexicon)} in the picture?"


def _with_article(noun: str, lexicon: Lexicon) -> str:
    if noun.rpartition(" ")[2] in lexicon.word_sets["plural only"] or noun in lexicon.word_sets["plural only"]:
        return noun
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _count_phrase(claim: Claim) -> str:
    number = int(claim.value)
    return f"{NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else number} {claim.subject if number == 1 else pluralize(claim.subject)}"


# ---- foils -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DistractorPool:
    """What else might be: nouns for a noun, and groups of values of which a thing has one."""

    nouns: tuple[str, ...]
    groups: tuple[frozenset[str], ...]

    @classmethod
    def from_lexicon(cls, lexicon: Lexicon, metadata: Mapping[str, Any] | None = None) -> DistractorPool:
        """Those of a lexicon, COCO's classes and the groups that facts are judged by, or what a calibration kept. Raises InputError."""
        metadata = metadata or {}
        nouns = metadata.get("nouns", sorted(set(lexicon.coco_category.values())))
        groups = metadata.get("groups", [COLOURS, MATERIALS, *EXCLUSIVE_VALUES])
        for name, rows in (("nouns", [nouns]), ("groups", groups)):
            are_lists = isinstance(rows, list) and all(isinstance(row, (list, set, frozenset)) for row in rows)
            if not are_lists or not all(isinstance(word, str) for row in rows for word in row):
                raise InputError(f"calibration: `{name}` must be words, not {rows!r}")
        return cls(tuple(nouns), tuple(frozenset(group) for group in groups))


def distractors(claim: Claim, pool: DistractorPool, lexicon: Lexicon) -> list[Claim]:
    """Claims of which none is true where this one is (of a noun: probably none). Empty where nothing is known to be its contrary."""
    if claim.kind == "object":
        return [
            replace(claim, subject=alternative)
            for alternative in pool.nouns
            if not _may_corefer(alternative, claim.subject, lexicon)
        ]
    if claim.kind == "attribute":
        return [
            replace(claim, value=alternative_value) for alternative_value in sorted(mutually_exclusive(claim.value, pool.groups))
        ]
    if claim.kind == "count":
        number = int(claim.value)
        return [
            replace(claim, value=str(alternative))
            for alternative in range(max(0, number - MAX_COUNT_OFFSET), number + MAX_COUNT_OFFSET + 1)
            if alternative != number
        ]
    relation = RELATION_SYNONYMS.get(claim.relation, claim.relation)
    if INVERSE_RELATIONS.get(relation) == relation:
        return []  # as true the other way round
    swapped = [] if claim.subject == claim.target else [replace(claim, subject=claim.target, target=claim.subject)]
    opposite = OPPOSITE_RELATIONS.get(claim.relation) or INVERSE_RELATIONS.get(relation)
    alternatives = {opposite} if opposite else EXCLUSIVE_RELATIONS.get(relation, set())
    return [*swapped, *(replace(claim, relation=opposite) for opposite in sorted(alternatives))]


def _may_corefer(a: str, b: str, lexicon: Lexicon) -> bool:
    """Whether one thing may have both names."""
    return a == b or a.endswith(f" {b}") or b.endswith(f" {a}") or lexicon.coco_class(a) == lexicon.coco_class(b) != ""
