"""Youden's J of a judge: how much more often a false claim lowers its score than a true one does.

J = TPR - FPR: the share of false claims that lower the score, minus the share of true claims that
do. A policy that is trained on the judge unlearns a kind of error if J is above 0 on its own
answers, and keeps or learns it if J is 0 or below, whatever the accuracy on pairs (Rad et al. 2026,
arXiv 2601.04411).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmrlhf.metrics.intervals import MIN_CLUSTERS, Z_95

ALL_KINDS = "all"
Outcomes = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By kind of claim: whether each false claim lowers the score, and whether each true one does."""


def youden_j(outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    """Return tpr, fpr, j and the numbers of claims, by kind and for `all` claims together.

    A kind without false claims, or without true ones, is left out.
    """
    return {
        kind: {
            "j": float(false_F.mean() - true_T.mean()),
            "tpr": float(false_F.mean()),
            "fpr": float(true_T.mean()),
            "n_false": len(false_F),
            "n_true": len(true_T),
        }
        for kind, (false_F, true_T) in _with_all(outcomes).items()
        if len(false_F) and len(true_T)
    }


def j_change(before: Outcomes, after: Outcomes) -> dict[str, float] | None:
    """Return how much J of all claims changed, with its 95% interval; None if it has no J.

    The outcomes are of the same claims, so the interval is that of paired differences. With fewer
    than MIN_CLUSTERS false or true claims it is the whole range, -2 to 2.
    """
    false_F, true_T = (
        after_lowers.astype(float) - before_lowers.astype(float)
        for before_lowers, after_lowers in zip(_with_all(before)[ALL_KINDS], _with_all(after)[ALL_KINDS], strict=True)
    )
    if not len(false_F) or not len(true_T):
        return None
    change = float(false_F.mean() - true_T.mean())
    if min(len(false_F), len(true_T)) < MIN_CLUSTERS:
        return {"value": change, "low": -2.0, "high": 2.0}
    half_width = Z_95 * float(np.sqrt(false_F.var(ddof=1) / len(false_F) + true_T.var(ddof=1) / len(true_T)))
    return {"value": change, "low": change - half_width, "high": change + half_width}


def _with_all(outcomes: Outcomes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outcomes with those of all kinds together first."""
    empty = np.zeros(0, dtype=bool)
    false_F = np.concatenate([false_F for false_F, _ in outcomes.values()] or [empty])
    true_T = np.concatenate([true_T for _, true_T in outcomes.values()] or [empty])
    return {ALL_KINDS: (false_F, true_T), **outcomes}
