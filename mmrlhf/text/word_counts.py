"""Split a text into words, and count them, also in languages that are written without spaces."""

from __future__ import annotations

import re
import unicodedata

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
PUNCTUATION = "\u2018-\u201f\u2026\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
"""Punctuation of Chinese and Japanese, which has no spaces around it."""
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_ONLY_PUNCTUATION = re.compile(rf"[{PUNCTUATION}]+")


def count_words(text: str) -> int:
    """Return the number of words of a text, as `split_words` gives them."""
    return len(split_words(text))


def split_words(text: str) -> list[str]:
    """Return the words between spaces; each character of UNSPACED is a word.

    Punctuation and combining marks in a text without spaces are not words.
    """
    return list(filter(_is_word, split_words_and_marks(text)))


def split_words_and_marks(text: str) -> list[str]:
    """Return the words of a text, and the punctuation and combining marks between them.

    In a text without characters of UNSPACED, this is `text.split()`.
    """
    return _WORD.findall(text)


def _is_word(word: str) -> bool:
    if re.match(rf"[{UNSPACED}]", word):
        return unicodedata.category(word)[0] not in "MPS"
    return _ONLY_PUNCTUATION.fullmatch(word) is None
