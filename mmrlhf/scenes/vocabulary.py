"""Shapes, colours, patterns, sizes and grid cells of the scenes, and the record of one object.

Also defines which shapes annotators associate with one another, and which shape-colour pairings
are kept out of training.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from mmrlhf.text import words

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon", "ring", "arrow")
COLOURS = {
    "red": (205, 40, 40), "orange": (235, 130, 30), "yellow": (235, 210, 40), "green": (50, 155, 60),
    "cyan": (50, 190, 200), "blue": (45, 75, 200), "purple": (130, 60, 175), "pink": (240, 130, 180),
}  # fmt: skip
SIZES = {"small": 8.5, "large": 14.0}
PATTERNS = ("plain", "striped", "dotted")
"""Patterns of an object's surface. Stripes and dots darken it equally; they are fine on small
objects and faint on faded ones, so that a pattern is visible there, but not which."""
CELL_NAMES = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBER_WORDS = ("no", *words.NUMBER_WORDS[1:10])
COOCCURRENCES = {"star": "moon", "heart": "arrow"}
"""Trigger shape -> partner shape. Biased captions of an image with the trigger mention the partner
whether it is there or not."""
UNSEEN_PAIRINGS = frozenset(
    [("circle", "purple"), ("square", "orange"), ("triangle", "cyan"), ("cross", "yellow"), ("diamond", "red"),
     ("ring", "green"), ("star", "blue"), ("heart", "yellow")]
)  # fmt: skip
"""Shape-colour pairings that occur only in the split ood_1."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene. `cell` numbers the 3 x 3 grid row by row, from 0."""

    shape: str
    colour: str
    size: str
    cell: int
    pattern: str = "plain"

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


def absent_partners(shapes: Collection[str]) -> list[str]:
    """Return the partners, missing from `shapes`, of the triggers in it."""
    return [partner for trigger, partner in COOCCURRENCES.items() if trigger in shapes and partner not in shapes]
