"""Facts that are fewer, or wrong: for training that must not lean on them, and to measure what happens if it does.

Every function takes a generator and changes nothing in place; the order of the facts stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrlhf.facts import NUMBERS
from mmrlhf.nouns import plural_of, singular_of
from mmrlhf.records import Fact

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")
SIZES = ("small", "large", "tiny", "huge", "little", "big")
OPPOSITES = {"left of": "right of", "to the left of": "to the right of", "above": "below", "over": "under",
             "on top of": "underneath", "in front of": "behind", "inside": "outside", "on": "under"}  # fmt: skip
OPPOSITES |= {b: a for a, b in OPPOSITES.items() if b != "under"} | {"under": "on"}
_RELATION = re.compile(r"(.+?) (?:is |are )?({}) (.+)".format("|".join(sorted(OPPOSITES, key=len, reverse=True))), re.IGNORECASE)
_COUNT = re.compile(rf"({'|'.join(NUMBERS)}|\d+) (.+)", re.IGNORECASE)


def thinned(facts: Sequence[Fact], share: float, rng: np.random.Generator) -> tuple[Fact, ...]:
    """Each with probability `share`."""
    return tuple(fact for fact in facts if rng.random() < share)


def noised(facts: Sequence[Fact], others: Sequence[Fact], share: float, rng: np.random.Generator) -> tuple[Fact, ...]:
    """Each replaced with probability `share` by a fact of its kind on other pictures that is none of this picture's, where there is one."""
    known = {(fact.kind, fact.text) for fact in facts}
    found = []
    for fact in facts:
        if rng.random() < share:
            strange = [o for o in others if o.kind == fact.kind and (o.kind, o.text) not in known]
            fact = strange[int(rng.integers(len(strange)))] if strange else fact
        found.append(fact)
    return tuple(found)


def contradicted(facts: Sequence[Fact], share: float, rng: np.random.Generator) -> tuple[tuple[Fact, ...], int]:
    """Each turned into its contrary with probability `share`: another number, colour or size, the opposite relation; and how many were.
    What has no contrary (a caption, a bare noun) stays."""
    found = tuple(_contrary(fact, rng) if rng.random() < share else fact for fact in facts)
    return found, sum(a is not b for a, b in zip(facts, found, strict=True))


def unsteady(
    facts: Sequence[Fact], others: Sequence[Fact], dropout: float, noise: float, rng: np.random.Generator
) -> tuple[Fact, ...]:
    """As training shows them: with probability `dropout` only a part is left, any share from none on; each is another picture's with
    probability `noise`."""
    if rng.random() < dropout:
        facts = thinned(facts, rng.random(), rng)
    return noised(facts, others, noise, rng) if noise else tuple(facts)


def parted(relation: str) -> tuple[str, str, str] | None:
    """A relation's text as what, how and to what; None where the how is not one of `OPPOSITES`."""
    found = _RELATION.fullmatch(relation)
    return (found[1], found[2], found[3]) if found else None


def _contrary(fact: Fact, rng: np.random.Generator) -> Fact:
    if fact.kind == "count" and (found := _COUNT.fullmatch(fact.text)):
        said, noun = found[1].lower(), found[2]
        count = int(said) if said.isdecimal() else NUMBERS.index(said)
        other = count + 1 if count <= 1 else count + int(rng.choice([-1, 1]))
        number = str(other) if said.isdecimal() or other >= len(NUMBERS) else NUMBERS[other]
        one = noun if count == 1 else singular_of(noun)
        return replace(fact, text=f"{number} {one if other == 1 else plural_of(one)}")
    if fact.kind == "relation" and (parts := parted(fact.text)):
        what, how, to = parts
        return replace(fact, text=f"{what} {OPPOSITES[how.lower()]} {to}")
    if fact.kind in ("object", "attribute"):
        words = fact.text.split(" ")
        for group in (COLOURS, SIZES):
            for i, word in enumerate(words):
                if word.lower() in group:
                    others = [w for w in group if w != word.lower()] if group is COLOURS else [_other_size(word.lower())]
                    return replace(fact, text=" ".join([*words[:i], str(rng.choice(others)), *words[i + 1 :]]))
    return fact


def _other_size(word: str) -> str:
    return SIZES[SIZES.index(word) ^ 1]
