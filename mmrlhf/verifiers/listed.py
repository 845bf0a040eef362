"""The objects that a list of facts names, and the relations that follow from their positions.

An object fact may have a box, or end with a place: one of the image's nine cells, three rows of
three, as in `red ring at the top left`. A cell with one word is in the middle of its side: `at the
left` is below `at the top left`. A place in words counts before a box. One object is left of
another if the centre of each is beyond the other's edge; two cells in one column, and boxes that
overlap more, leave the relation open. Above and below mean higher and lower in the picture.

A claim about a place in the image names a row, a column or both: `at the left of` the image is true
of three cells. A box is compared with halves of the image instead of thirds. Other facts ("the ring
is on the left") state such places, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mmrlhf.claims import Lexicon
from mmrlhf.facts.parse import Box
from mmrlhf.records import Claim, Verdict
from mmrlhf.text.words import IMAGE, IMAGE_RELATIONS
from mmrlhf.verifiers.nouns import is_a

Evidence = list[tuple[str, float]]
"""Facts as text for reports, each with its confidence."""
_PLACE = re.compile(r".+ at the (?:(top|bottom)(?: (left|right))?|(left|right)|cent(?:re|er))", re.IGNORECASE)
_POSITIONS = {"top": 0, "left": 0, "bottom": 2, "right": 2}
_DIRECTIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Relation -> its axis (x 0, y 1), and the sign of subject minus target."""
_BANDS = ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0))
"""Where the centre of a box lies, as a share of the image's side, in each row or column."""


@dataclass(frozen=True)
class ListedObject:
    """An object fact: its noun, its attributes' canonical values, its place and box if given."""

    noun: str
    values: frozenset[str]
    evidence: tuple[str, float]
    place: tuple[int, int] | None = None
    """Row and column, each from 0 to 2."""
    box: Box | None = None

    @property
    def extent(self) -> Box | None:
        """The cell of its place, or else its box, as x0, y0, x1, y1 in shares of the image."""
        if self.place is None:
            return self.box
        row, column = self.place
        return column / 3, row / 3, (column + 1) / 3, (row + 1) / 3


def read_place(text: str) -> tuple[int, int] | None:
    """Return row and column of the place at the end of an object fact, None without one."""
    match = _PLACE.fullmatch(text.strip().rstrip("."))
    if match is None:
        return None
    row, column, side = ((word or "").lower() for word in match.groups())
    return _POSITIONS.get(row, 1), _POSITIONS.get(column or side, 1)


def compare_extents(
    relation: str, subjects: Sequence[ListedObject], targets: Sequence[ListedObject]
) -> Iterator[tuple[bool | None, tuple[str, float]]]:
    """Yield, for each pair of two objects, whether the relation holds, and the facts that say so.

    Yield None if that does not decide: they overlap too much, or it is not known where one is.
    Yield nothing for a relation that positions do not determine (`on`, `behind`, `under`).
    """
    if relation not in _DIRECTIONS:
        return
    axis, sign = _DIRECTIONS[relation]
    for subject in subjects:
        for target in targets:
            if subject is target:
                continue
            order = 0 if subject.extent is None or target.extent is None else _order(subject.extent, target.extent, axis)
            (text, confidence), (target_text, target_confidence) = subject.evidence, target.evidence
            evidence = f"{text}; {target_text}", min(confidence, target_confidence)
            yield order == sign if order else None, evidence


def agreeing_evidence(relation: str, subjects: Sequence[ListedObject], targets: Sequence[ListedObject], holds: bool) -> Evidence:
    """Return the facts by which a relation holds, or does not, for all pairs of two objects.

    A claim has no attributes: of two dogs, it may mean either, so all pairs must agree.
    """
    outcomes = list(compare_extents(relation, subjects, targets))
    return [evidence for _, evidence in outcomes] if all(outcome is holds for outcome, _ in outcomes) else []


def _order(a: Box, b: Box, axis: int) -> int:
    """Return -1 if `a` comes before `b` along an axis (x 0, y 1), 1 if after, 0 if they overlap
    too much.

    The centre of each must be beyond the other's edge.
    """
    (a0, a1), (b0, b1) = ((box[axis], box[axis + 2]) for box in (a, b))
    if (a0 + a1) / 2 <= b0 and a1 <= (b0 + b1) / 2:
        return -1
    return int(a0 >= (b0 + b1) / 2 and (a0 + a1) / 2 >= b1)


# ---- places in the image -----------------------------------------------------------------------


def excluding_places(relation: str, objects: Iterable[ListedObject]) -> Evidence:
    """Return the facts by which no object is at a place in the image, none if one may be there."""
    outcomes = [(_is_at(relation, other), other.evidence) for other in objects]
    return [evidence for _, evidence in outcomes] if all(is_there is False for is_there, _ in outcomes) else []


def image_place_evidence(
    claim: Claim,
    objects: Sequence[ListedObject],
    stated: Mapping[tuple[str, str], Mapping[str, Sequence[tuple[str, float]]]],
    num_counted: int,
    counted: Sequence[ListedObject],
    lexicon: Lexicon,
) -> tuple[Evidence, Evidence]:
    """Return evidence for a claim about a place in the image, and evidence against it.

    One object at the place supports the claim. It is contradicted if all listed objects of its name
    are elsewhere, or a fact of `stated` (relations by subject and target) puts the only one at the
    opposite side, but not if there are more of them (`num_counted`) than listed. Annotations with
    boxes may leave out objects, so boxes contradict only if facts count them: `counted` are then
    all objects that the claim may mean.
    """
    supporting = [o.evidence for o in objects if is_a(o.noun, claim.subject, lexicon) and _is_at(claim.relation, o)]
    contradicting: Evidence = []
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
    if not supporting:
        have_places = num_counted <= len(same_name) and all(o.place is not None for o in same_name)
        contradicting += excluding_places(claim.relation, same_name if same_name and have_places else counted)
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
    """Return whether a listed object is at a place in the image, None if that is open.

    A box is there if its centre is, and elsewhere if it does not reach that part of the image.
    """
    row_and_column = IMAGE_RELATIONS[relation]
    if listed.place is not None:
        return all(wanted in (None, known) for wanted, known in zip(row_and_column, listed.place, strict=True))
    if listed.box is None:
        return None
    spans = ((listed.box[1], listed.box[3]), (listed.box[0], listed.box[2]))
    bands = [(*span, *_BANDS[wanted]) for span, wanted in zip(spans, row_and_column, strict=True) if wanted is not None]
    if any(end <= low or start >= high for start, end, low, high in bands):
        return False
    return True if all(low <= (start + end) / 2 <= high for start, end, low, high in bands) else None


def _follows(relation: str, stated: str) -> bool | None:
    """Return whether what is stated to be at one place is at another, too; None if it may be.

    The top left is on the left, and not at the bottom; the left may be the top left, or not.
    """
    pairs = list(zip(IMAGE_RELATIONS[relation], IMAGE_RELATIONS.get(stated, (None, None)), strict=True))
    if any({wanted, known} == {0, 2} for wanted, known in pairs):
        return False
    return True if all(wanted in (None, known) for wanted, known in pairs) else None
