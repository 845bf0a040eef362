"""Diversity metrics against computation by hand."""

import pytest

from mmrlhf.metrics.diversity import distinct_n, ead


def test_distinct_n_and_ead_match_hand_computation():
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["a"], 2) == 0
    # 3 words, 2 distinct, vocabulary of 2: 2 (1 - (1/2) ** 3) = 1.75 expected
    assert ead(["a b", "a"], 2) == pytest.approx(2 / 1.75)
