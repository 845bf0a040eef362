"""One and many of English nouns, by `inflect`, and the pairs and masses that it does not know."""

from __future__ import annotations

import functools

import inflect

INVARIANT_NOUNS = ("broccoli", "glasses", "jeans", "pants", "shorts", "skis", "sunglasses", "trousers")


@functools.cache
def pluralize(noun: str) -> str:
    """`traffic light` -> `traffic lights`; only the last word changes."""
    head, space, last = noun.rpartition(" ")
    return noun if last in INVARIANT_NOUNS or not last.isalpha() else f"{head}{space}{_inflect_engine().plural(last)}"


@functools.cache
def singularize(noun: str) -> str:
    """Back from `plural_of`; a noun that is singular stays."""
    head, space, last = noun.rpartition(" ")
    singular = False if last in INVARIANT_NOUNS or not last.isalpha() else _inflect_engine().singular_noun(last)
    return f"{head}{space}{singular}" if singular else noun


@functools.cache
def _inflect_engine() -> inflect.engine:
    return inflect.engine()
