"""Biases of the labels towards longer answers and towards a position, compared with the truth.

Each is a share of comparisons with a 95% interval. The comparisons of a prompt share answers, so
the intervals are somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmrlhf.metrics.calibration import proportion
from mmrlhf.training.feedback.pairs import Comparison

TRUE_GAP = 1.0
"""Smallest difference of true utilities at which a label is clearly right or wrong."""
Proportion = dict[str, float | int | None]


def label_biases(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Return the biases of the labels on all comparisons that they decide.

    length: how often the longer answer is labelled better, and how often it is truly better, on the
    same comparisons. verbosity: how often the longer one is labelled better where both are equally
    good (without bias 0.5), and the agreement with the truth where the truly better answer is the
    longer and where it is the shorter one, whose difference is the bias (Saito et al. 2023,
    "Verbosity bias in preference labeling by large language models"). position: the same for the
    answer that was sampled first; claims are verified one by one, so it should be 0.5.

    Without truth, only the shares of labels are returned.
    """
    decided = [comparison for comparison in comparisons if comparison.gap > 0]
    known = [comparison for comparison in decided if comparison.true_gap is not None]
    untied = [comparison for comparison in known if comparison.true_gap]
    tied = [comparison for comparison in known if comparison.true_gap == 0]

    def sides(is_side: Callable[[Comparison], bool], applies: Callable[[Comparison], bool]) -> dict[str, Any]:
        """Return shares about one side of a comparison, such as its longer answer."""
        shares: dict[str, Any] = {"labelled": _share(decided, is_side, applies)}
        if not known:
            return shares
        true_sides: dict[bool, list[Comparison]] = {True: [], False: []}
        for comparison in filter(applies, untied):
            true_sides[is_side(comparison) == is_right(comparison)].append(comparison)
        agreement = {side: _share(rows, is_right) for side, rows in true_sides.items()}
        return shares | {
            "labelled_where_untied": _share(untied, is_side, applies),
            "true_where_untied": _share(untied, lambda c: is_side(c) == is_right(c), applies),
            "labelled_at_equal_truth": _share(tied, is_side, applies),
            "agreement_if_true": agreement[True],
            "agreement_if_not": agreement[False],
            "bias": _difference(agreement[True], agreement[False]),
        }

    return {
        "length": sides(lambda c: c.length_gap > 0, lambda c: c.length_gap != 0),
        "position": sides(lambda c: c.is_first_better, lambda _: True),
    }


def is_right(comparison: Comparison) -> bool:
    """Return whether the truth prefers the same answer as the label."""
    return comparison.true_gap is not None and comparison.true_gap > 0


def agreement(comparisons: Sequence[Comparison]) -> dict[str, Proportion]:
    """Return how often labels agree with the truth: over all untied comparisons, and clear ones.

    Of comparisons that the labels decide: in a tie, the better one is just the one sampled first.
    It is clear where the true utilities differ by at least TRUE_GAP. `tied` is the share of
    comparisons that are truly ties, for which no label is right.
    """
    known = [comparison for comparison in comparisons if comparison.gap > 0 and comparison.true_gap is not None]
    return {
        "untied": _share(known, is_right, lambda c: c.true_gap != 0),
        "clear": _share(known, is_right, lambda c: abs(c.true_gap or 0) >= TRUE_GAP),
        "tied": _share(known, lambda c: c.true_gap == 0),
    }


def _share(
    comparisons: Sequence[Comparison], holds: Callable[[Comparison], bool], applies: Callable[[Comparison], bool] = lambda _: True
) -> Proportion:
    counted = [comparison for comparison in comparisons if applies(comparison)]
    prompts = [comparison.better.sampled.row for comparison in counted]  # each has several comparisons
    return proportion(np.array(list(map(holds, counted)), dtype=bool), prompts)


def _difference(first: Proportion, second: Proportion) -> float | None:
    if first["value"] is None or second["value"] is None:
        return None
    return first["value"] - second["value"]
