"""Diversity metrics against computation by hand."""

import pytest

from mmrlhf.metrics.diversity import distinct_n, ead, whole_folds


def test_whole_folds_leave_out_the_rest_unless_there_is_none():
    answers = [str(number) for number in range(120)]
    assert whole_folds(answers) == [answers[:50], answers[50:100]]
    assert whole_folds(answers[:49]) == [answers[:49]]


def test_distinct_n_and_ead_match_hand_computation():
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)  # ab, ba, ab
    assert distinct_n(["a"], 2) == 0
    assert distinct_n(["红杯红杯"], 2) == pytest.approx(2 / 3)  # without blanks, characters are words
    # 3 words, 2 distinct, vocabulary of 2: 2 (1 - (1/2) ** 3) = 1.75 expected
    assert ead(["a b", "a"], 2) == pytest.approx(2 / 1.75)
