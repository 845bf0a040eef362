"""Bounds of the patterns: an attempt of unbounded length would make the work quadratic."""

import pytest

from mmrlhf.claims.markup import QUOTED_OR_MARKUP
from mmrlhf.claims.noun_phrases import PHRASE_PATTERN


@pytest.mark.parametrize(
    ("opening", "closing", "limit"),
    [("`", "`", 300), ('"', '"', 200), ("“", "”", 200), ("'", "'", 120), ("‘", "’", 120), ("<", ">", 200),
     ("[", "](a)", 200), ("![", "](a)", 200), ("[a](", ")", 300), ("![a](", ")", 300)],
)  # fmt: skip
def test_quoted_or_markup_reaches_only_to_its_limit(opening, closing, limit):
    def matches(length):
        return QUOTED_OR_MARKUP.match(f"{opening}{'x' * length}{closing}") is not None

    assert matches(limit) and not matches(limit + 1)


def test_phrase_pattern_reaches_only_to_its_limits():
    assert PHRASE_PATTERN.fullmatch("D" + 8 * "J" + 8 * "N")
    assert not PHRASE_PATTERN.fullmatch("D" + 9 * "J" + "N")
    assert not PHRASE_PATTERN.fullmatch("D" + 9 * "N")
