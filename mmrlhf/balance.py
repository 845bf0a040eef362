"""Pairs chosen so that length says nothing of which answer is better: annotators like longer ones, and a reward model learns that first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmrlhf.records import InputError, Preference

BINS = 10


def balance_lengths(preferences: Sequence[Preference], seed: int) -> list[int]:
    """The numbers of the pairs to keep. Among pairs of similar length gap, relative to the longer answer, as many whose better answer is
    the longer one as whose worse one is; which, is drawn. Ties and pairs of one length stay. RLAIF-V (Yu et al. 2024) has the aim.

    Raises InputError for a ranking of more than two answers.
    """
    gaps = np.zeros(len(preferences))
    for i, p in enumerate(preferences):
        if len(p.answers) > 2:
            raise InputError(
                f"row {p.id} ranks {len(p.answers)} answers: lengths are balanced over pairs, convert to them with `mmrlhf data convert`"
            )
        better, worse = (len(answer.split()) for answer in p.answers)
        gaps[i] = 0.0 if p.comparisons[0].tie else (better - worse) / max(better, worse, 1)
    rng = np.random.default_rng([seed, 19])
    kept = np.flatnonzero(gaps == 0).tolist()
    uneven = np.flatnonzero(gaps != 0)
    edges: np.ndarray | list[float] = np.quantile(np.abs(gaps[uneven]), np.linspace(0, 1, BINS + 1)[1:-1]) if len(uneven) else []
    place = np.searchsorted(edges, np.abs(gaps[uneven]))
    for b in range(BINS):
        longer, shorter = (rng.permutation(uneven[(place == b) & (np.sign(gaps[uneven]) == sign)]) for sign in (1, -1))
        most = min(len(longer), len(shorter))
        kept += [*longer[:most].tolist(), *shorter[:most].tolist()]
    return sorted(kept)
