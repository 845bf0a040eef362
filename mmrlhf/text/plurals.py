"""Form plurals and singulars of English nouns with `inflect`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

INVARIANT_NOUNS = ("broccoli", "glasses", "jeans", "pants", "shorts", "skis", "sunglasses", "trousers")
"""Nouns with the same singular and plural that `inflect` does not know."""


@functools.cache
def pluralize(noun: str) -> str:
    """Return a noun's plural; in a compound only the last word changes: traffic lights."""
    head, space, last = noun.rpartition(" ")
    return noun if last in INVARIANT_NOUNS or not last.isalpha() else f"{head}{space}{_inflect_engine().plural(last)}"


@functools.cache
def singularize(noun: str) -> str:
    """Return a noun's singular; a singular is returned unchanged."""
    head, space, last = noun.rpartition(" ")
    singular = False if last in INVARIANT_NOUNS or not last.isalpha() else _inflect_engine().singular_noun(last)
    return f"{head}{space}{singular}" if singular else noun


@functools.cache
def _inflect_engine() -> inflect.engine:
    import inflect  # takes over a second

    return inflect.engine()
