"""Balancing makes answer lengths uninformative about preferences, and keeps all other pairs."""

from dataclasses import replace

import numpy as np

from mmrlhf.datasets.balance import balance_lengths
from tests.helpers.preferences import make_pair


def test_balance_lengths_uses_one_bin_for_few_pairs():
    pairs = [make_pair(4, 2), make_pair(6, 3), make_pair(9, 4), make_pair(2, 4), make_pair(5, 5), make_pair(9, 1, is_tie=True)]
    kept = balance_lengths(pairs, seed=0)
    assert {3, 4, 5} < set(kept) and len(
        kept
    ) == 4  # the one pair with the longer answer rejected, and one of three with it chosen
    assert balance_lengths(iter(pairs), seed=0) == kept
    assert {tuple(balance_lengths(pairs, seed)) for seed in range(20)} == {(0, 3, 4, 5), (1, 3, 4, 5), (2, 3, 4, 5)}


def test_balance_lengths_handles_empty_and_one_sided_input():
    assert balance_lengths([], seed=0) == []
    assert balance_lengths([make_pair(3, 1), make_pair(2, 1)], seed=0) == []
    assert balance_lengths([make_pair(2, 2)], seed=0) == [0]


def test_balance_lengths_equalises_longer_chosen_at_every_gap():
    rng = np.random.default_rng(0)
    pairs = [make_pair(int(a) + 5, int(b) + 1) for a, b in rng.integers(1, 60, (2000, 2))]
    kept = [pairs[row] for row in balance_lengths(pairs, seed=0)]
    gaps = np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in kept])
    longest = np.array([max(len(text.split()) for text in p.answers) for p in kept])
    assert len(kept) > 1000 and (gaps > 0).sum() == (gaps < 0).sum()
    for low in (0.0, 0.25, 0.5, 0.75):
        gaps_in_range = gaps[(abs(gaps) / longest > low) & (abs(gaps) / longest <= low + 0.25)]
        assert abs((gaps_in_range > 0).mean() - 0.5) < 0.05
    longer_chosen_before = np.mean([len(p.chosen.split()) > len(p.rejected.split()) for p in pairs])
    assert longer_chosen_before > 0.55


def test_balance_lengths_counts_characters_and_takes_answers_without_words():
    pair = make_pair(1, 1)
    pairs = [replace(pair, answers=answers) for answers in (("", ""), ("红色的杯子", "杯子"), ("杯子", "红色的杯子"))]
    assert balance_lengths(pairs, seed=0) == [0, 1, 2]
    assert balance_lengths(pairs[:2], seed=0) == [0]  # the longer answer is chosen, and never rejected
