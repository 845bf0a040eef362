"""Pairs whose longer answer is no likelier the chosen one."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmrlhf.records import InputError, Preference

BINS = 10
"""Of length gaps, with as many pairs in each; fewer where a bin would have less than PAIRS_A_BIN."""
PAIRS_A_BIN = 20


def balance_lengths(preferences: Iterable[Preference], seed: int) -> list[int]:
    """The numbers of the pairs to keep, so that the longer answer is the chosen one as often as not, at every size of the gap.

    Annotators and models favour long answers, and a reward model learns that first. Pairs are put into bins by the
    difference of their lengths in words, as a share of the longer; of each bin as many stay whose chosen answer is the
    longer one as whose rejected one is, by a seeded draw. Ties, and pairs of one length, stay. Raises InputError for a ranking of
    more than two answers.
    """
    gaps = []
    for preference in preferences:
        if len(preference.answers) != 2:
            raise InputError(
                f"row {preference.id} ranks {len(preference.answers)} answers: lengths are balanced over pairs, so convert it to pairs first"
            )
        ours, theirs = (len(text.split()) for text in preference.answers)
        tie = preference.ranks[0] == preference.ranks[1]
        gaps.append(0.0 if tie else (ours - theirs) / max(ours, theirs))
    gap = np.array(gaps)
    (uneven,) = np.nonzero(gap)
    kept = [np.flatnonzero(gap == 0)]
    rng = np.random.default_rng([seed, 29])
    for inside in _bins(np.abs(gap[uneven])):
        rows = uneven[inside]
        sides = [rows[gap[rows] > 0], rows[gap[rows] < 0]]
        most = min(map(len, sides))
        kept += [rng.permutation(side)[:most] for side in sides]
    return sorted(int(row) for rows in kept for row in rows)


def _bins(sizes: np.ndarray) -> list[np.ndarray]:
    """Places of values of like size, about as many in each bin; equal values share one."""
    count = min(BINS, max(1, len(sizes) // PAIRS_A_BIN))
    if not len(sizes):
        return []
    edges = np.quantile(sizes, np.linspace(0, 1, count + 1)[1:-1])
    of = np.searchsorted(edges, sizes)
    return [np.flatnonzero(of == number) for number in range(count)]
