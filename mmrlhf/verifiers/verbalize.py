"""Claims in words: phrases for open_clip, questions for a model, and distractors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmrlhf.claims import Lexicon
from mmrlhf.claims.verb_forms import present_participle
from mmrlhf.records import Claim, InputError
from mmrlhf.text import words
from mmrlhf.text.plurals import pluralize
from mmrlhf.text.words import COLOURS, IMAGE_RELATIONS, ONE_WAY_ACTIONS, OPPOSITE_ACTIONS
from mmrlhf.verifiers.exclusions import (
    ACTION_SYNONYMS,
    EXCLUSIVE_RELATIONS,
    EXCLUSIVE_VALUES,
    INVERSE_RELATIONS,
    MATERIALS,
    RELATION_SYNONYMS,
    mutually_exclusive,
)

NUMBER_WORDS = ("no", *words.NUMBER_WORDS[1:11])
OPPOSITE_RELATIONS = {relation: words.OPPOSITE_RELATIONS[relation] for relation in ("above", "below")}
"""Opposites for phrases if `INVERSE_RELATIONS` has a less usual name (`under`, not `below`)."""
MAX_COUNT_OFFSET = 2
"""Distractors of a count differ from it by at most this much."""


def claim_phrase(claim: Claim, lexicon: Lexicon) -> str:
    """Return a claim as a noun phrase, without its negation: "three rings", "a cat on a couch".

    An action has its verb in -ing: "a man riding a bicycle".
    """
    if claim.kind == "count":
        return _count_phrase(claim)
    if claim.kind == "attribute":
        return _with_article(f"{claim.value} {claim.subject}", lexicon)
    subject = _with_article(claim.subject, lexicon)
    if claim.kind == "action":
        return f"{subject} {present_participle(claim.relation)} {_with_article(claim.target, lexicon)}"
    if claim.relation in IMAGE_RELATIONS:
        return f"{subject} {claim.relation} the {claim.target}"
    if claim.kind == "relation":
        return f"{subject} {claim.relation} {_with_article(claim.target, lexicon)}"
    return subject


def display(claim: Claim, lexicon: Lexicon) -> str:
    """Return a claim as text for reports."""
    text = claim_phrase(claim, lexicon)
    return f"{'not ' if claim.negated else ''}{text}{' (hedged)' if claim.hedged else ''}"


def claim_question(claim: Claim, lexicon: Lexicon) -> str:
    """Return a yes/no question that asks whether a claim, without its negation, is true."""
    is_plural = claim.subject in lexicon.word_sets["plural only"] if claim.kind != "count" else claim.value != "1"
    exactly = "exactly " if claim.kind == "count" else ""
    place = "" if claim.relation in IMAGE_RELATIONS else " in the picture"
    return f"{'Are' if is_plural else 'Is'} there {exactly}{claim_phrase(claim, lexicon)}{place}?"


def _with_article(noun: str, lexicon: Lexicon) -> str:
    if noun.rpartition(" ")[2] in lexicon.word_sets["plural only"] or noun in lexicon.word_sets["plural only"]:
        return noun
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


def _count_phrase(claim: Claim) -> str:
    number = int(claim.value)
    number_text = NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else str(number)
    return f"{number_text} {claim.subject if number == 1 else pluralize(claim.subject)}"


# ---- distractors -------------------------------------------------------------------------------


@dataclass(frozen=True)
class DistractorPool:
    """The parts of distractors: nouns, and groups of values that exclude each other."""

    nouns: tuple[str, ...]
    groups: tuple[frozenset[str], ...]

    @classmethod
    def from_lexicon(cls, lexicon: Lexicon, metadata: Mapping[str, Any] | None = None) -> DistractorPool:
        """Return the pool in a calibration's metadata, or COCO's classes and exclusive values.

        Raises InputError for metadata that is not lists of words.
        """
        metadata = metadata or {}
        nouns = metadata.get("nouns", sorted(set(lexicon.coco_category.values())))
        groups = metadata.get("groups", [COLOURS, MATERIALS, *EXCLUSIVE_VALUES])
        for name, rows in (("nouns", [nouns]), ("groups", groups)):
            are_lists = isinstance(rows, list) and all(isinstance(row, (list, set, frozenset)) for row in rows)
            if not are_lists or not all(isinstance(word, str) for row in rows for word in row):
                raise InputError(f"calibration: `{name}` must be words, not {rows!r}")
        return cls(tuple(nouns), tuple(frozenset(group) for group in groups))


def distractors(claim: Claim, pool: DistractorPool, lexicon: Lexicon) -> list[Claim]:
    """Return claims that differ from this one in one part, and are false if it is true.

    Claims with another noun are only probably false. The list is empty if no opposite is known.
    """
    if claim.kind == "object":
        nouns = [noun for noun in pool.nouns if not _may_corefer(noun, claim.subject, lexicon)]
        return [replace(claim, subject=noun) for noun in nouns]
    if claim.kind == "attribute":
        return [replace(claim, value=value) for value in sorted(mutually_exclusive(claim.value, pool.groups))]
    if claim.kind == "count":
        number = int(claim.value)
        numbers = range(max(0, number - MAX_COUNT_OFFSET), number + MAX_COUNT_OFFSET + 1)
        return [replace(claim, value=str(other)) for other in numbers if other != number]
    if claim.kind == "action":
        return _action_distractors(claim)
    if claim.relation in IMAGE_RELATIONS:
        return [replace(claim, relation=other) for other in _opposite_places(claim.relation)]
    relation = RELATION_SYNONYMS.get(claim.relation, claim.relation)
    if INVERSE_RELATIONS.get(relation) == relation:
        return []  # symmetric: the swapped claim is as true
    swapped = [] if claim.subject == claim.target else [replace(claim, subject=claim.target, target=claim.subject)]
    opposite = OPPOSITE_RELATIONS.get(claim.relation) or INVERSE_RELATIONS.get(relation)
    alternatives = {opposite} if opposite else EXCLUSIVE_RELATIONS.get(relation, set())
    return [*swapped, *(replace(claim, relation=opposite) for opposite in sorted(alternatives))]


def _action_distractors(claim: Claim) -> list[Claim]:
    """Return claims that exclude an action: the reversed action, and other actions."""
    action = ACTION_SYNONYMS.get(claim.relation, claim.relation)
    is_one_way = action in ONE_WAY_ACTIONS and claim.subject != claim.target
    turned = [replace(claim, subject=claim.target, target=claim.subject)] if is_one_way else []
    return [*turned, *(replace(claim, relation=other) for other in OPPOSITE_ACTIONS.get(action, ()))]


def _opposite_places(relation: str) -> list[str]:
    """Return the places in the image at the opposite side, mirrored in one direction or both."""
    row, column = IMAGE_RELATIONS[relation]
    mirrored = {(r, c) for r in _with_mirrored(row) for c in _with_mirrored(column)} - {(row, column)}
    return [other for other, cell in IMAGE_RELATIONS.items() if cell in mirrored]


def _with_mirrored(index: int | None) -> set[int | None]:
    return {None} if index is None else {index, 2 - index}


def _may_corefer(a: str, b: str, lexicon: Lexicon) -> bool:
    """Return whether the same object may have both names."""
    return a == b or a.endswith(f" {b}") or b.endswith(f" {a}") or lexicon.coco_class(a) == lexicon.coco_class(b) != ""
