"""Facts that are fewer, or wrong: for training that must not lean on them, and to measure what happens if it does.

Every function takes a generator and changes nothing in place; the order of the facts stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrlhf.facts import NUMBER_WORDS
from mmrlhf.records import Fact
from mmrlhf.text.plurals import pluralize, singularize
from mmrlhf.text.words import BASIC_COLOURS, OPPOSITE_RELATIONS, OPPOSITE_SIZES

_RELATION = re.compile(
    r"(.+?) (?:is |are )?({}) (.+)".format("|".join(sorted(OPPOSITE_RELATIONS, key=len, reverse=True))), re.IGNORECASE
)
_COUNT = re.compile(rf"({'|'.join(NUMBER_WORDS)}|\d+) (.+)", re.IGNORECASE)


def drop_facts(facts: Sequence[Fact], keep_probability: float, rng: np.random.Generator) -> tuple[Fact, ...]:
    """Each with probability `share`."""
    return tuple(fact for fact in facts if rng.random() < keep_probability)


def swap_facts(
    facts: Sequence[Fact], other_facts: Sequence[Fact], probability: float, rng: np.random.Generator
) -> tuple[Fact, ...]:
    """Each replaced with probability `share` by a fact of its kind on other pictures that is none of this picture's, where there is one."""
    known = {(fact.kind, fact.text) for fact in facts}
    swapped = []
    for fact in facts:
        if rng.random() < probability:
            candidates = [other for other in other_facts if other.kind == fact.kind and (other.kind, other.text) not in known]
            fact = candidates[int(rng.integers(len(candidates)))] if candidates else fact
        swapped.append(fact)
    return tuple(swapped)


def negate_facts(facts: Sequence[Fact], probability: float, rng: np.random.Generator) -> tuple[tuple[Fact, ...], int]:
    """Each turned into its contrary with probability `share`: another number, colour or size, the opposite relation; and how many were.
    What has no contrary (a caption, a bare noun) stays."""
    negated = tuple(_negate_fact(fact, rng) if rng.random() < probability else fact for fact in facts)
    return negated, sum(a is not b for a, b in zip(facts, negated, strict=True))


def augment_facts(
    facts: Sequence[Fact], other_facts: Sequence[Fact], dropout: float, noise: float, rng: np.random.Generator
) -> tuple[Fact, ...]:
    """As training shows them: with probability `dropout` only a part is left, any share from none on; each is another picture's with
    probability `noise`."""
    if rng.random() < dropout:
        facts = drop_facts(facts, rng.random(), rng)
    return swap_facts(facts, other_facts, noise, rng) if noise else tuple(facts)


def split_relation(relation: str) -> tuple[str, str, str] | None:
    """A relation's text as what, how and to what; None where the how is not one of `OPPOSITES`."""
    match = _RELATION.fullmatch(relation)
    return (match[1], match[2], match[3]) if match else None


def _negate_fact(fact: Fact, rng: np.random.Generator) -> Fact:
    if fact.kind == "count" and (match := _COUNT.fullmatch(fact.text)):
        count_text, noun = match[1].lower(), match[2]
        count = int(count_text) if count_text.isdecimal() else NUMBER_WORDS.index(count_text)
        new_count = count + 1 if count <= 1 else count + int(rng.choice([-1, 1]))
        new_count_text = str(new_count) if count_text.isdecimal() or new_count >= len(NUMBER_WORDS) else NUMBER_WORDS[new_count]
        singular = noun if count == 1 else singularize(noun)
        return replace(fact, text=f"{new_count_text} {singular if new_count == 1 else pluralize(singular)}")
    if fact.kind == "relation" and (parts := split_relation(fact.text)):
        subject, relation, target = parts
        return replace(fact, text=f"{subject} {OPPOSITE_RELATIONS[relation.lower()]} {target}")
    if fact.kind in ("object", "attribute"):
        words = fact.text.split(" ")
        for alternatives in (BASIC_COLOURS, OPPOSITE_SIZES):
            for i, word in enumerate(words):
                if word.lower() in alternatives:
                    replacements = (
                        [w for w in alternatives if w != word.lower()]
                        if alternatives is BASIC_COLOURS
                        else [OPPOSITE_SIZES[word.lower()]]
                    )
                    return replace(fact, text=" ".join([*words[:i], str(rng.choice(replacements)), *words[i + 1 :]]))
    return fact
