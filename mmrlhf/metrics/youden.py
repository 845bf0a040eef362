"""Youden's J of a reward model: how much more often false claims lower its score than true ones.

J = TPR - FPR: the share of false claims that lower the score, minus the share of true claims that
do. A policy trained on the reward model unlearns a kind of error if J is above 0 on its own
answers, and keeps or learns it if J is 0 or below, whatever the accuracy on pairs (Rad et al. 2026,
arXiv 2601.04411).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from mmrlhf.metrics.calibration import proportion
from mmrlhf.metrics.intervals import MIN_CLUSTERS

ALL_KINDS = "all"
"""The name of the figures over all kinds of claims."""
Outcomes = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By kind of claim: whether each false claim lowers the score, and whether each true one does."""
RowsOfClaims = Mapping[str, tuple[Sequence[Hashable], Sequence[Hashable]]]
"""By kind of claim, in the order of the outcomes: the row of each false and of each true claim."""


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


def youden_j_with_intervals(outcomes: Outcomes, rows: RowsOfClaims) -> dict[str, dict[str, Any]]:
    """Return the same as `youden_j`, with the 95% interval of each J as `low` and `high`.

    Both shares have intervals over rows, as claims of one row are not independent, and that of J is
    made of these as in Newcombe (1998), method 10, so it has a width at 0 and 1 too.
    """
    j_by_kind = youden_j(outcomes)
    false_rows, true_rows = ([row for kind in outcomes for row in rows[kind][truth]] for truth in (0, 1))
    rows = {ALL_KINDS: (false_rows, true_rows), **rows}
    for kind, (false_F, true_T) in _with_all(outcomes).items():
        if kind in j_by_kind:
            tpr, fpr = proportion(false_F, rows[kind][0]), proportion(true_T, rows[kind][1])
            j_by_kind[kind] |= _difference_interval(tpr, fpr)
    return j_by_kind


def _difference_interval(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """Return the interval of a minus b from theirs."""
    difference = a["value"] - b["value"]
    return {
        "low": difference - float(np.hypot(a["value"] - a["low"], b["high"] - b["value"])),
        "high": difference + float(np.hypot(a["high"] - a["value"], b["value"] - b["low"])),
    }


def j_change(before: Outcomes, after: Outcomes, rows: RowsOfClaims) -> dict[str, float] | None:
    """Return the change of J over all claims, with its 95% interval; None if J is undefined.

    The outcomes are of the same claims, so the interval is that of paired differences: the
    t-interval of a difference of ratios over rows, as claims of one row are not independent. If
    fewer than MIN_CLUSTERS rows have false claims, or true ones, it is the whole range, -2 to 2.
    """
    false_F, true_T = (
        after_lowers.astype(float) - before_lowers.astype(float)
        for before_lowers, after_lowers in zip(_with_all(before)[ALL_KINDS], _with_all(after)[ALL_KINDS], strict=True)
    )
    if not len(false_F) or not len(true_T):
        return None
    change = float(false_F.mean() - true_T.mean())
    false_rows, true_rows = ([row for kind in before for row in rows[kind][truth]] for truth in (0, 1))
    if min(len(set(false_rows)), len(set(true_rows))) < MIN_CLUSTERS:
        return {"value": change, "low": -2.0, "high": 2.0}
    # To first order, a row's claims contribute their deviations from the two mean rates.
    deviations: dict[Hashable, float] = defaultdict(float)
    for row, deviation in zip(false_rows, (false_F - false_F.mean()) / len(false_F), strict=True):
        deviations[row] += float(deviation)
    for row, deviation in zip(true_rows, (true_T - true_T.mean()) / len(true_T), strict=True):
        deviations[row] -= float(deviation)
    variance = len(deviations) / (len(deviations) - 1) * sum(deviation**2 for deviation in deviations.values())
    half_width = float(stdtrit(len(deviations) - 1, 0.975)) * variance**0.5
    return {"value": change, "low": change - half_width, "high": change + half_width}


def _with_all(outcomes: Outcomes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the outcomes with those of all kinds together first."""
    empty = np.zeros(0, dtype=bool)
    false_F = np.concatenate([false_F for false_F, _ in outcomes.values()] or [empty])
    true_T = np.concatenate([true_T for _, true_T in outcomes.values()] or [empty])
    return {ALL_KINDS: (false_F, true_T), **outcomes}
