"""The context of a word with several possible tags, which the rules for its tag examine."""

from __future__ import annotations

from dataclasses import dataclass

from mmrlhf.claims.tagging import Tokens
from mmrlhf.claims.tags import (
    CLAUSE_BREAK_TAGS,
    CLAUSE_START_TAGS,
    FINITE_VERB_TAGS,
    NOUN_TAGS,
)


@dataclass(slots=True)
class WordContext:
    """A word with several possible tags, and its surroundings."""

    tokens: Tokens
    index: int
    text: str
    possible_tags: str
    noun_tag: str
    """N or X if the word can be a noun, else empty."""
    previous_tag: str
    next_tags: str
    """All possible tags of the next word, the most likely first."""
    next_tag: str
    phrase_start: int
    """Index at which the noun phrase of the previous word began, or -1."""
    in_phrase: bool
    """Whether the previous word leaves a noun phrase without a head."""
    head_follows: bool
    """Whether the next word can continue a noun phrase."""

    @property
    def attribute_rank(self) -> int:
        return self.tokens.attribute_rank[self.index]

    @property
    def is_plural(self) -> bool:
        return self.tokens.is_plural[self.index]

    def word_at(self, offset: int) -> str:
        """Return the word `offset` places away, or "" outside the text."""
        index = self.index + offset
        return self.tokens.words[index] if 0 <= index < len(self.tokens.words) else ""

    def words_before(self, count: int) -> list[str]:
        return self.tokens.words[max(0, self.index - count) : self.index]

    def follows_there(self) -> bool:
        """Return whether the clause presents something: there are *swimming* pools."""
        return self.tokens.tags[self.index - 2 : self.index - 1] == ["T"]

    def presents(self) -> bool:
        """Return whether `there is` opens the clause. Looks back at most 13 words."""
        tags = self.tokens.tags
        for index in range(self.index - 1, max(-1, self.index - 14), -1):
            if tags[index] in CLAUSE_BREAK_TAGS:
                return False
            if tags[index] == "T":
                return tags[index + 1] in FINITE_VERB_TAGS
        return False

    def prefers_adjective(self) -> bool:
        """Return whether the word is more likely an adjective than a noun."""
        return self.possible_tags.index("J") < self.possible_tags.index(self.noun_tag)


# ---- the clause so far -------------------------------------------------------------------------


def starts_noun_phrase(tags: list[str], comma_index: int) -> bool:
    """Return whether a noun phrase, not an adjective, follows a comma or `and`.

    One does in `a round ottoman, and a lamp`.
    """
    is_comma_and = tags[comma_index] == "," and tags[comma_index + 1 : comma_index + 2] == ["C"]
    index = comma_index + (2 if is_comma_and else 1)
    return index >= len(tags) or tags[index] in ("D", ".", "#")


def has_plural_subject(tokens: Tokens, index: int) -> bool:
    """Return whether the first noun of the clause is a plural. Looks back at most 30 words."""
    start = index - 1
    while start >= max(0, index - 30) and tokens.tags[start] not in CLAUSE_BREAK_TAGS:
        start -= 1
    for i in range(start + 1, index):
        is_last_noun = tokens.tags[i] in NOUN_TAGS and tokens.tags[i + 1] not in NOUN_TAGS
        if is_last_noun:
            return tokens.is_plural[i]
    return False


def has_verb(tokens: Tokens, index: int) -> bool:
    """Return whether the clause has a finite verb before the word. Looks back at most 13 words."""
    for i in range(index - 1, max(-1, index - 14), -1):
        if tokens.tags[i] in CLAUSE_START_TAGS or tokens.words[i] == "as":
            return False
        if tokens.tags[i] in FINITE_VERB_TAGS:
            return True
    return False
