"""Select pairs in which the longer answer is chosen and rejected equally often."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmrlhf.records import InputError, Preference
from mmrlhf.text.word_counts import count_words

MAX_BINS = 10
"""Maximum number of bins of length gaps, which are about equally full. There are fewer if a bin
would have under MIN_PAIRS_PER_BIN pairs."""
MIN_PAIRS_PER_BIN = 20


def balance_lengths(preferences: Iterable[Preference], seed: int) -> list[int]:
    """Return the indices of pairs to keep so that length does not predict which answer is chosen.

    Annotators and models favour long answers, and reward models learn this first. Pairs are binned
    by the difference of their lengths in words, as a fraction of the longer. In each bin, a seeded
    draw keeps equal numbers of pairs with the longer answer chosen and rejected. Ties and pairs of
    equal length are kept. Raises InputError for a ranking of more than two answers.
    """
    length_gaps = []
    for preference in preferences:
        if len(preference.answers) != 2:
            raise InputError(
                f"row {preference.id} ranks {len(preference.answers)} answers: lengths are balanced over pairs, so convert it to pairs first"
            )
        first_length, second_length = (count_words(text) for text in preference.answers)
        is_tie = preference.ranks[0] == preference.ranks[1]
        length_gaps.append(0.0 if is_tie else (first_length - second_length) / max(first_length, second_length, 1))
    gap_N = np.array(length_gaps)
    (unequal_indices,) = np.nonzero(gap_N)
    kept_indices = [np.flatnonzero(gap_N == 0)]
    rng = np.random.default_rng([seed, 29])  # 29 separates this stream from other draws with the seed
    for bin_indices in _quantile_bins(np.abs(gap_N[unequal_indices])):
        rows = unequal_indices[bin_indices]
        sides = [rows[gap_N[rows] > 0], rows[gap_N[rows] < 0]]  # longer answer chosen, longer answer rejected
        num_per_side = min(map(len, sides))
        kept_indices += [rng.permutation(side)[:num_per_side] for side in sides]
    return sorted(int(row) for rows in kept_indices for row in rows)


def _quantile_bins(values: np.ndarray) -> list[np.ndarray]:
    """Return the indices in each quantile bin. Bins are about equally full; ties share a bin."""
    num_bins = min(MAX_BINS, max(1, len(values) // MIN_PAIRS_PER_BIN))
    if not len(values):
        return []
    edges = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    bin_of_value = np.searchsorted(edges, values)
    return [np.flatnonzero(bin_of_value == index) for index in range(num_bins)]
