"""The objects that a list of facts names, and the spatial relations that follow from their places.

A place is one of the image's nine cells, three rows of three, at the end of an object fact:
`red ring at the top left`. A cell with one word is in the middle of its side: `at the left` is
below `at the top left`. If two objects share a row or column, the relation stays open.

A claim about a place in the image names a row, a column or both: `at the left of` the image is true
of three cells. Other facts ("the ring is on the left") state such places, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim, Verdict
from mmrlhf.text.words import IMAGE, IMAGE_RELATIONS
from mmrlhf.verifiers.nouns import is_a

_PLACE = re.compile(r".+ at the (?:(top|bottom)(?: (left|right))?|(left|right)|cent(?:re|er))", re.IGNORECASE)
_POSITIONS = {"top": 0, "left": 0, "bottom": 2, "right": 2}
_DIRECTIONS = {"above": (0, -1), "below": (0, 1), "left of": (1, -1), "right of": (1, 1)}
"""Relation -> its axis (row 0, column 1), and the sign of subject minus target."""


@dataclass(frozen=True)
class ListedObject:
    """An object fact: its noun, its attributes' canonical values and its place, if it has one."""

    noun: str
    values: frozenset[str]
    evidence: tuple[str, float]
    place: tuple[int, int] | None = None
    """Row and column, each from 0 to 2."""


def read_place(text: str) -> tuple[int, int] | None:
    """Return row and column of the place at the end of an object fact, None without one."""
    match = _PLACE.fullmatch(text.strip().rstrip("."))
    if match is None:
        return None
    row, column, side = ((word or "").lower() for word in match.groups())
    return _POSITIONS.get(row, 1), _POSITIONS.get(column or side, 1)


def compare_places(
    relation: str, subjects: Sequence[ListedObject], targets: Sequence[ListedObject]
) -> Iterator[tuple[bool | None, tuple[str, float]]]:
    """Yield, for each pair of two objects, whether the relation holds, and the facts that say so.

    Yield None if places do not decide: in one row or column, or unknown. Yield nothing for a
    relation that places do not determine (`on`, `behind`, `under`).
    """
    if relation not in _DIRECTIONS:
        return
    axis, sign = _DIRECTIONS[relation]
    for subject in subjects:
        for target in targets:
            if subject is target:
                continue
            difference = 0 if subject.place is None or target.place is None else subject.place[axis] - target.place[axis]
            (text, confidence), (target_text, target_confidence) = subject.evidence, target.evidence
            evidence = f"{text}; {target_text}", min(confidence, target_confidence)
            yield difference * sign > 0 if difference else None, evidence


# ---- places in the image -----------------------------------------------------------------------


def excluding_places(relation: str, objects: Iterable[ListedObject]) -> list[tuple[str, float]]:
    """Return the facts by which no object is at a place in the image, none if one may be there."""
    outcomes = [(_is_at(relation, other), other.evidence) for other in objects]
    return [evidence for _, evidence in outcomes] if all(is_there is False for is_there, _ in outcomes) else []


def image_place_evidence(
    claim: Claim,
    objects: Sequence[ListedObject],
    stated: Mapping[tuple[str, str], Mapping[str, Sequence[tuple[str, float]]]],
    num_counted: int,
    lexicon: Lexicon,
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return evidence for a claim about a place in the image, and evidence against it.

    One object at the place supports the claim. It is contradicted if all listed objects of its name
    are elsewhere, or a fact of `stated` (relations by subject and target) puts the only one at the
    opposite side, but not if there are more of them (`num_counted`) than listed.
    """
    supporting = [o.evidence for o in objects if is_a(o.noun, claim.subject, lexicon) and _is_at(claim.relation, o)]
    contradicting: list[tuple[str, float]] = []
    same_name = [o for o in objects if o.noun == claim.subject]
    is_unique = num_counted < 2 and len(same_name) < 2
    for (noun, target), evidence_by_relation in stated.items():
        if target != IMAGE or not is_a(noun, claim.subject, lexicon):
            continue
        for relation, evidence in evidence_by_relation.items():
            is_there = _follows(claim.relation, relation)
            if is_there:
                supporting += evidence
            elif is_there is False and is_unique and noun == claim.subject:
                contradicting += evidence
    if not supporting and num_counted <= len(same_name):
        contradicting += excluding_places(claim.relation, same_name)
    return supporting, contradicting


def is_place_of_unlisted(claim: Claim, verdicts: Sequence[Verdict], objects: Sequence[ListedObject]) -> bool:
    """Return whether a place may be that of an object that an incomplete list leaves out.

    Of "a ring at the left and a ring at the right", a list with one ring at the right supports the
    second, so the first is about another ring.
    """
    if claim.relation not in IMAGE_RELATIONS or claim.negated:
        return False
    found = [v for v in verdicts if v.value == "supported" and v.claim.relation in IMAGE_RELATIONS and not v.claim.negated]
    num_found = sum(v.claim.subject == claim.subject for v in found)
    return 0 < sum(o.noun == claim.subject for o in objects) <= num_found


def _is_at(relation: str, listed: ListedObject) -> bool | None:
    """Return whether a listed object is at a place in the image, None if its own is unknown."""
    if listed.place is None:
        return None
    return all(wanted in (None, known) for wanted, known in zip(IMAGE_RELATIONS[relation], listed.place, strict=True))


def _follows(relation: str, stated: str) -> bool | None:
    """Return whether what is stated to be at one place is at another, too; None if it may be.

    The top left is on the left, and not at the bottom; the left may be the top left, or not.
    """
    pairs = list(zip(IMAGE_RELATIONS[relation], IMAGE_RELATIONS.get(stated, (None, None)), strict=True))
    if any({wanted, known} == {0, 2} for wanted, known in pairs):
        return False
    return True if all(wanted in (None, known) for wanted, known in pairs) else None
