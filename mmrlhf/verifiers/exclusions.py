"""List values, relations and actions that cannot be true at the same time, and their synonyms.

Each synonym has a canonical name, by which facts are indexed.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from mmrlhf.text.words import COLOUR_SHADES, COLOURS, word_set

VALUE_SYNONYMS = {
    "gray": "grey", "golden": "gold", "wood": "wooden", "blond": "blonde", "big": "large", "huge": "large", "giant": "large",
    "little": "small", "tiny": "small", "coloured": "colored", "multicoloured": "multicolored", "colourful": "colorful", "shut": "closed",
    "metallic": "metal", "woolen": "wool", "old": "old", "elderly": "old", "aged": "old", "vacant": "empty",
}  # fmt: skip
"""Synonym of an attribute value -> the canonical value by which facts are indexed."""
MATERIALS = word_set("wooden metal steel plastic glass leather stone brick concrete marble paper cardboard rubber ceramic")
COMPATIBLE_VALUES = [
    word_set(names)
    for names in (
        "violet purple", "maroon red", "maroon brown", "navy blue", "navy black", "teal turquoise cyan", "teal blue", "teal green",
        "turquoise blue", "turquoise green", "silver grey", "gold yellow", "gold orange", "tan beige brown", "tan yellow", "beige white",
        "metal steel", "stone marble", "stone brick", "stone concrete", "paper cardboard", "plastic rubber",
    )
]  # fmt: skip
"""Sets of values that may describe the same object, and do not contradict each other."""
EXCLUSIVE_VALUES = [
    {"open", "closed"}, {"empty", "full", "crowded", "packed"}, {"wet", "dry"}, {"clean", "dirty"}, {"young", "old"}, {"tall", "short"},
    {"long", "short"}, {"large", "small"}, {"round", "square", "rectangular"}, {"dark", "bright"}, {"male", "female"},
    {"cloudy", "clear", "overcast", "sunny"}, {"raw", "cooked"}, {"new", "old"}, {"striped", "plain", "checkered", "dotted"},
]  # fmt: skip
"""Sets of values that exclude each other."""
NEAR_SYNONYMS = {name: "near" for name in ("near", "next to", "beside", "by", "close to", "alongside", "adjacent to", "near to")}
RELATION_SYNONYMS = NEAR_SYNONYMS | {
    "on top of": "on", "atop": "on", "upon": "on", "onto": "on", "inside": "in", "within": "in", "into": "in", "inside of": "in",
    "over": "above", "underneath": "under", "beneath": "under", "below": "under", "to the left of": "left of",
    "to the right of": "right of", "in between": "between", "outside of": "outside", "in back of": "behind", "surrounding": "around",
}  # fmt: skip
"""Synonym of a relation -> the canonical relation by which facts are indexed."""
INVERSE_RELATIONS = {"left of": "right of", "above": "under", "in front of": "behind", "near": "near"}
INVERSE_RELATIONS |= {b: a for a, b in INVERSE_RELATIONS.items()}
"""Relation -> its inverse, which holds from target to subject."""
EXCLUSIVE_RELATIONS = {
    "left of": {"right of"},
    "right of": {"left of"},
    "above": {"under"},
    "under": {"above", "on"},
    "on": {"under"},
    "in front of": {"behind"},
    "behind": {"in front of"},
    "in": {"outside"},
    "outside": {"in"},
}
"""Relation -> those that cannot hold at the same time."""
ACTION_SYNONYMS = {
    "put on": "wear", "don": "wear", "sport": "wear", "grip": "hold", "grasp": "hold", "clutch": "hold", "hold onto": "hold",
    "grab": "hold", "stare at": "look at", "gaze at": "look at", "watch": "look at", "observe": "look at", "glance at": "look at",
    "look towards": "look at", "look toward": "look at", "view": "look at", "munch": "eat", "munch on": "eat", "chew": "eat",
    "chew on": "eat", "bite": "eat", "bite into": "eat", "nibble": "eat", "nibble on": "eat", "consume": "eat", "feed on": "eat",
    "graze": "eat", "eat from": "eat", "sip": "drink", "drink from": "drink", "speak to": "talk to", "speak with": "talk to",
    "talk with": "talk to", "chat with": "talk to", "interact with": "talk to", "talk into": "talk on", "speak on": "talk on",
    "strike": "hit", "pat": "pet", "stroke": "pet", "drag": "pull", "haul": "pull", "toss": "throw", "raise": "lift", "pick up": "lift",
    "embrace": "hug", "pursue": "chase", "strum": "play", "shut": "close", "operate": "drive", "steer": "drive", "slice": "cut",
    "chop": "cut", "transport": "carry", "bear": "carry",
}  # fmt: skip
"""Synonym of an action -> the canonical action by which facts are indexed."""
ONE_AT_A_TIME = word_set("ride drive")
"""Actions with one object at a time: a man who rides a horse rides no bicycle."""
HYPERNYM_CLASSES = word_set("person bird cat dog horse sheep cow bear")
"""COCO classes that include all their synonyms: without a dog there is no puppy."""
WHOLE_PLACES = word_set(
    "room kitchen bathroom bedroom living-room scene street road park beach field classroom office garden yard"
) | {"living room"}
"""Places that usually fill the image: an object that is not in them is absent."""


def canonical_value(value: str) -> str:
    """Return the value by which facts are indexed: `light grey` and `gray` are `grey`."""
    for shade in COLOUR_SHADES:
        value = value.removeprefix(f"{shade} ")
    return VALUE_SYNONYMS.get(value, value)


def mutually_exclusive(value: str, groups: Sequence[Set[str]] = (COLOURS, MATERIALS, *EXCLUSIVE_VALUES)) -> set[str]:
    """Return the values, among `value`'s groups, that an object with `value` cannot have."""
    compatible = {value}.union(*(names for names in COMPATIBLE_VALUES if value in names))
    return {other for group in groups if value in group for other in group} - compatible
