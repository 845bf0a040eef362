"""Tables of rules for the tag of a word with several uses.

A table is read from top to bottom, and the first rule that applies decides. Each rule has an
example sentence with its word in *stars*, which a test reads: the rule must decide it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mmrlhf.claims.word_context import WordContext

NOUN = "noun"
"""Tag of a rule that makes its word a noun, N or X."""
ALL_TAGS = "NXUuJKR#VGEBHMIDZSQTWPAFCYOL?,:.\n"


def _always(word: WordContext) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Rule:
    """A tag, and when it fits: after one of the tags in `after` (any if empty), if `applies`."""

    example: str
    tag: str
    after: str = ""
    applies: Callable[[WordContext], object] = _always


class RuleTable:
    """Rules in their order, grouped by the tag of the word before."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self._rules_after = {tag: tuple(r for r in rules if not r.after or tag in r.after) for tag in ALL_TAGS}

    def decide(self, word: WordContext) -> str:
        """Return the tag of the first rule that applies, or "" if none does."""
        for rule in self._rules_after[word.previous_tag]:
            if rule.applies(word):
                return word.noun_tag if rule.tag is NOUN else rule.tag
        return ""
