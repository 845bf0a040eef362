"""Diversity of texts: distinct n-grams, plain and adjusted for length."""

from __future__ import annotations

from collections.abc import Sequence

from mmrlhf.text.word_counts import split_words

FOLD_SIZE = 50
"""Answers per fold: the metrics depend on their number, so all folds have the same size."""


def whole_folds(answers: Sequence[str]) -> list[list[str]]:
    """Return answers in folds of FOLD_SIZE, without the remainder; fewer answers are one fold."""
    starts = range(0, len(answers) - FOLD_SIZE + 1, FOLD_SIZE)
    return [list(answers[start : start + FOLD_SIZE]) for start in starts] or [list(answers)]


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Return the ratio of distinct n-grams to all n-grams of lower-cased words (Li et al. 2016); 0
    without any."""
    ngrams: list[tuple[str, ...]] = []
    for answer in answers:
        words = split_words(answer.lower())
        ngrams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def ead(answers: Sequence[str], vocabulary_size: int) -> float:
    """Return expectation-adjusted distinct words (Liu et al. 2022); 0 without words.

    These are the distinct words over their expected number, V (1 - ((V - 1) / V) ** C) for C words
    drawn uniformly from a vocabulary of V.
    """
    words = [word for answer in answers for word in split_words(answer.lower())]
    if not words:
        return 0.0
    expected = vocabulary_size * (1 - ((vocabulary_size - 1) / vocabulary_size) ** len(words))
    return len(set(words)) / expected
