"""The objects that a list of facts names, and the spatial relations that follow from their places.

A place is one of the image's nine cells, three rows of three, at the end of an object fact:
`red ring at the top left`. A cell with one word is in the middle of its side: `at the left` is
below `at the top left`. If two objects share a row or column, the relation stays open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
