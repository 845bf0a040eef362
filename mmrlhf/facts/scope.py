"""Whether a list of facts is complete, by one fact of kind `scope`: `complete` or `incomplete`.

Readers of a complete list may assume that anything else is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from mmrlhf.records import Fact

Scope = Literal["complete", "incomplete"]


def split_scope(facts: Sequence[Fact]) -> tuple[str, list[Fact]]:
    """Return the scope of a list ("" if it names none), and its other facts.

    A list that names both is incomplete.
    """
    scopes = {fact.text for fact in facts if fact.kind == "scope"}
    scope = "incomplete" if "incomplete" in scopes else "complete" if scopes else ""
    return scope, [fact for fact in facts if fact.kind != "scope"]


def mark_incomplete(facts: Sequence[Fact]) -> tuple[Fact, ...]:
    """Return a list that has lost facts, marked as incomplete if it was complete."""
    return tuple(replace(fact, text="incomplete") if fact.kind == "scope" else fact for fact in facts)
