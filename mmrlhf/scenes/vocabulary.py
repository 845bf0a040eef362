"""What scenes are made of: the words for shapes, colours, sizes and places, and one object.

With them stand the habits and the pairings that training never shows.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon", "ring", "arrow")
COLOURS = {
    "red": (205, 40, 40), "orange": (235, 130, 30), "yellow": (235, 210, 40), "green": (50, 155, 60),
    "cyan": (50, 190, 200), "blue": (45, 75, 200), "purple": (130, 60, 175), "pink": (240, 130, 180),
}  # fmt: skip
SIZES = {"small": 8.5, "large": 14.0}
CELL_NAMES = (
    "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
NUMBER_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COOCCURRENCES = {"star": "moon", "heart": "arrow"}
"""Trigger -> partner: the first in a picture calls for the second in captions, there or not."""
UNSEEN_PAIRINGS = frozenset(
    [("circle", "purple"), ("square", "orange"), ("triangle", "cyan"), ("cross", "yellow"), ("diamond", "red"),
     ("ring", "green"), ("star", "blue"), ("heart", "yellow")]
)  # fmt: skip
"""Shape-colour pairings that only the first out-of-distribution split shows."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene; `cell` counts the 3 x 3 grid row by row."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"
