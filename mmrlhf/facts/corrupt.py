"""Corrupt facts: drop some, or make some wrong.

Corrupted facts train reward models not to trust facts blindly, and measure how much a model relies
on them. Functions with random draws take a generator, change nothing in place, and keep the order
of the facts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mmrlhf.claims.verb_forms import present_participle, third_person
from mmrlhf.facts import NUMBER_WORDS, mark_incomplete
from mmrlhf.records import Fact
from mmrlhf.text.plurals import pluralize, singularize
from mmrlhf.text.words import BASIC_COLOURS, OPPOSITE_ACTIONS, OPPOSITE_RELATIONS, OPPOSITE_SIZES

_RELATION = re.compile(
    r"(.+?) (?:is |are )?({}) (.+)".format("|".join(sorted(OPPOSITE_RELATIONS, key=len, reverse=True))), re.IGNORECASE
)
_ACTION_FORMS = {
    form: (verb, inflect)
    for verb in OPPOSITE_ACTIONS
    for inflect in (present_participle, third_person, str)
    for form in (inflect(verb),)
}
"""Base of each form of an action's verb, and the function that forms it."""
_ACTION = re.compile(
    r"(?:(?:an?|the) )?(.+?) (?:is |are )?({}) (?:(?:an?|the) )?(.+)".format(
        "|".join(sorted(_ACTION_FORMS, key=len, reverse=True))
    ),
    re.IGNORECASE,
)
_COUNT = re.compile(rf"({'|'.join(NUMBER_WORDS)}|\d+) (.+)", re.IGNORECASE)


def drop_facts(facts: Sequence[Fact], keep_probability: float, rng: np.random.Generator) -> tuple[Fact, ...]:
    """Keep each fact with probability `keep_probability`. A list that loses one is incomplete."""
    kept = tuple(fact for fact in facts if fact.kind == "scope" or rng.random() < keep_probability)
    return kept if len(kept) == len(facts) else mark_incomplete(kept)


def swap_facts(
    facts: Sequence[Fact], other_facts: Sequence[Fact], probability: float, rng: np.random.Generator
) -> tuple[Fact, ...]:
    """Replace each fact, with probability `probability`, by another image's fact of its kind.

    A fact that this image also has is never drawn. A fact without a candidate stays.
    """
    known = {(fact.kind, fact.text) for fact in facts}
    swapped = []
    for fact in facts:
        if fact.kind != "scope" and rng.random() < probability:
            candidates = [other for other in other_facts if other.kind == fact.kind and (other.kind, other.text) not in known]
            fact = candidates[int(rng.integers(len(candidates)))] if candidates else fact
        swapped.append(fact)
    return tuple(swapped)


def negate_facts(facts: Sequence[Fact], probability: float, rng: np.random.Generator) -> tuple[tuple[Fact, ...], int]:
    """Negate each fact with probability `probability`; also return how many changed.

    The negated fact has another number, colour or size, the opposite relation, or an action that
    excludes the fact's. A fact without any of these (a caption, a bare noun) stays.
    """
    negated = tuple(_negate_fact(fact, rng) if rng.random() < probability else fact for fact in facts)
    return negated, sum(a is not b for a, b in zip(facts, negated, strict=True))


def augment_facts(
    facts: Sequence[Fact], other_facts: Sequence[Fact], dropout: float, noise: float, rng: np.random.Generator
) -> tuple[Fact, ...]:
    """Augment facts for training.

    With probability `dropout`, keep only a uniformly random share of them. Then replace each, with
    probability `noise`, by another image's.
    """
    if rng.random() < dropout:
        facts = drop_facts(facts, rng.random(), rng)
    return swap_facts(facts, other_facts, noise, rng) if noise else tuple(facts)


def split_relation(relation: str) -> tuple[str, str, str] | None:
    """Return subject, relation and target; None if the relation is not in `OPPOSITE_RELATIONS`."""
    match = _RELATION.fullmatch(relation)
    return (match[1], match[2], match[3]) if match else None


def split_action(text: str) -> tuple[str, str, str] | None:
    """Return subject, verb's base and object; None if the verb is not in `OPPOSITE_ACTIONS`."""
    match = _ACTION.fullmatch(text)
    return (match[1], _ACTION_FORMS[match[2].lower()][0], match[3]) if match else None


def _negate_fact(fact: Fact, rng: np.random.Generator) -> Fact:
    """Return the opposite of a fact, or the fact itself if it has none."""
    if fact.kind == "count":
        text = _negate_count(fact.text, rng)
    elif fact.kind == "relation":
        text = _negate_relation(fact.text) or _negate_action(fact.text)
    elif fact.kind in ("object", "attribute"):
        text = _negate_attribute(fact.text, rng)
    else:
        return fact
    return fact if text is None else replace(fact, text=text)


def _negate_count(text: str, rng: np.random.Generator) -> str | None:
    """Change a count such as `two cups` by one, to one or more; return None for other texts."""
    match = _COUNT.fullmatch(text)
    if not match:
        return None
    count_text, noun = match[1].lower(), match[2]
    count = int(count_text) if count_text.isdecimal() else NUMBER_WORDS.index(count_text)
    new_count = count + 1 if count <= 1 else count + int(rng.choice([-1, 1]))
    in_digits = count_text.isdecimal() or new_count >= len(NUMBER_WORDS)
    new_count_text = str(new_count) if in_digits else NUMBER_WORDS[new_count]
    singular = noun if count == 1 else singularize(noun)
    return f"{new_count_text} {singular if new_count == 1 else pluralize(singular)}"


def _negate_relation(text: str) -> str | None:
    parts = split_relation(text)
    if not parts:
        return None
    subject, relation, target = parts
    return f"{subject} {OPPOSITE_RELATIONS[relation.lower()]} {target}"


def _negate_action(text: str) -> str | None:
    """Replace an action by one that excludes it, in the same form: man riding horse."""
    match = _ACTION.fullmatch(text)
    if not match:
        return None
    verb, inflect = _ACTION_FORMS[match[2].lower()]
    start, end = match.span(2)
    return f"{text[:start]}{inflect(OPPOSITE_ACTIONS[verb][0])}{text[end:]}"


def _negate_attribute(text: str, rng: np.random.Generator) -> str | None:
    """Replace the first colour, or else the first size; return None for a text without either."""
    words = text.split(" ")
    for alternatives in (BASIC_COLOURS, OPPOSITE_SIZES):
        for i, word in enumerate(words):
            if word.lower() not in alternatives:
                continue
            if alternatives is BASIC_COLOURS:
                replacements = [colour for colour in BASIC_COLOURS if colour != word.lower()]
            else:
                replacements = [OPPOSITE_SIZES[word.lower()]]
            return " ".join([*words[:i], str(rng.choice(replacements)), *words[i + 1 :]])
    return None
