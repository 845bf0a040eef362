"""Contradict what a complete list of facts leaves out.

A list is complete if it says so by a fact of kind `scope`. Then an object that it does not list is
absent, a kind has as many objects as are listed, and an attribute is false if every object that it
may be about has one that excludes it. Facts themselves decide first: this is asked where they are
silent. Relations and actions are never taken for complete, but their objects must be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim
from mmrlhf.verifiers.exclusions import WHOLE_PLACES

Evidence = list[tuple[str, float]]
"""Facts as text for reports, each with its confidence."""


@dataclass(frozen=True)
class ListedObject:
    """An object of a complete list: its canonical noun, its attributes, and the fact as text."""

    noun: str
    values: frozenset[str]
    evidence: tuple[str, float]
