"""How varied texts are: distinct n-grams, plain and adjusted for length."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016), words split at white space; 0 without any."""
    ngrams = [tuple(words[i : i + n]) for words in (a.lower().split() for a in answers) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def ead(answers: Sequence[str], vocabulary_size: int) -> float:
    """Expectation-adjusted distinct words (Liu et al. 2022): distinct over V (1 - ((V - 1) / V) ** C) for C words."""
    words = [w for a in answers for w in a.lower().split()]
    return len(set(words)) / (vocabulary_size * (1 - ((vocabulary_size - 1) / vocabulary_size) ** len(words))) if words else 0.0
