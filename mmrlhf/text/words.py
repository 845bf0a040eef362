"""Word lists that several parts of the package share: numbers, colours, sizes and opposites.

A module that needs fewer or other words derives them from these, with a reason. Two others have
their own lists: `lemmatize` reproduces those of official scripts, and `scenes.vocabulary` gives
each colour and size of the synthetic scenes its RGB value or radius.
"""

from __future__ import annotations


def word_set(text: str) -> frozenset[str]:
    """Return the set of the words in `text`, separated by spaces."""
    return frozenset(text.split())


# ---- numbers -----------------------------------------------------------------------------------

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
"""Number words in order: the word at index n means n."""
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
NUMBER_VALUES = {word: value for value, word in enumerate(NUMBER_WORDS)} | TENS
"""Value of each number word that has no hyphen, up to ninety."""

# ---- colours and sizes ---------------------------------------------------------------------------

BASIC_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
"""The eleven basic colour terms of English (Berlin and Kay 1969)."""
COLOURS = frozenset(BASIC_COLOURS) | {
    "cyan", "violet", "beige", "tan", "gold", "silver", "teal", "turquoise", "maroon", "navy",
}  # fmt: skip
"""Colours in the spelling that values are normalised to: `grey`, not `gray`."""
COLOUR_SHADES = ("light", "dark", "bright", "pale", "deep")
"""Words that shade the colour after them."""
OPPOSITE_SIZES = {"small": "large", "large": "small", "tiny": "huge", "huge": "tiny", "little": "big", "big": "little"}

# ---- relations -----------------------------------------------------------------------------------

OPPOSITE_RELATIONS = {
    "left of": "right of", "right of": "left of", "to the left of": "to the right of", "to the right of": "to the left of",
    "above": "below", "below": "above", "over": "under", "on": "under", "under": "on", "on top of": "underneath",
    "underneath": "on top of", "in front of": "behind", "behind": "in front of", "inside": "outside", "outside": "inside",
}  # fmt: skip
"""The relation that excludes each relation between the same two objects, in the same style."""
IMAGE = "image"
"""The target of a relation that says where in the image something is."""
IMAGE_PLACES: dict[str, tuple[int | None, int | None]] = {
    "top left": (0, 0), "top middle": (0, 1), "top right": (0, 2), "middle left": (1, 0), "centre": (1, 1), "middle right": (1, 2),
    "bottom left": (2, 0), "bottom middle": (2, 1), "bottom right": (2, 2),
    "top": (0, None), "bottom": (2, None), "left": (None, 0), "right": (None, 2),
}  # fmt: skip
"""Row and column, from 0 to 2, of each place in the image; None leaves it open."""
IMAGE_RELATIONS = {f"at the {name} of": cell for name, cell in IMAGE_PLACES.items()}
"""Row and column of each relation to the image."""

# ---- actions -----------------------------------------------------------------------------------

OPPOSITE_ACTIONS = {
    "ride": ("push", "carry", "lead"), "push": ("pull", "ride", "carry"), "pull": ("push",), "throw": ("catch",), "catch": ("throw",),
    "open": ("close",), "close": ("open",), "wear": ("throw", "wash"), "lead": ("ride",), "carry": ("ride", "push", "drive"),
    "drive": ("push", "carry", "wash"), "chase": ("carry", "ride"), "feed": ("chase",), "hold": ("chase",), "eat": ("throw", "wear"),
    "follow": ("lead",), "put on": ("take off",), "take off": ("put on",), "look at": ("turn away from",), "drink": ("wear",),
    "walk": ("carry", "ride"), "read": ("throw", "sit on"), "hug": ("chase",), "kiss": ("chase",), "pet": ("chase",),
    "kick": ("catch", "carry"), "hit": ("carry",), "lift": ("ride",), "fly": ("wear", "eat"), "cut": ("throw",), "tow": ("push",),
    "talk to": ("chase",), "play with": ("carry",), "wash": ("ride", "drive"), "play": ("break", "carry"),
}  # fmt: skip
"""Actions that one cannot do to the same thing at the same time, likely ones first."""
ONE_WAY_ACTIONS = word_set("ride wear eat drive carry hold drink throw fly read feed cut tow")
"""Actions whose object does not do the same to its actor: horses do not ride men."""
