"""One and many of English nouns, by `inflect`, and the pairs and masses that it does not know."""

from __future__ import annotations

import functools

import inflect

SAME = ("broccoli", "glasses", "jeans", "pants", "shorts", "skis", "sunglasses", "trousers")


@functools.cache
def plural_of(noun: str) -> str:
    """`traffic light` -> `traffic lights`; only the last word changes."""
    head, space, last = noun.rpartition(" ")
    return noun if last in SAME or not last.isalpha() else f"{head}{space}{_engine().plural(last)}"


@functools.cache
def singular_of(noun: str) -> str:
    """Back from `plural_of`; a noun that is singular stays."""
    head, space, last = noun.rpartition(" ")
    one = False if last in SAME or not last.isalpha() else _engine().singular_noun(last)
    return f"{head}{space}{one}" if one else noun


@functools.cache
def _engine() -> inflect.engine:
    return inflect.engine()
