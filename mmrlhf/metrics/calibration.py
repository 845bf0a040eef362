"""Calibration of probabilities: temperature, Platt scaling, expected calibration error, AUROC,
reliability diagrams.

For a reward model, the first of two answers is better with probability sigmoid((first - second) /
temperature). A verifier gives each claim a probability of being true.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit

from mmrlhf.metrics.intervals import Z_95, SufficientStats, wilson, with_intervals

SEED = 0
"""Seed of the bootstrap."""
NUM_BINS = 10
"""Bins of a reliability diagram, of equal width in probability."""


def proportion(outcomes: np.ndarray, clusters: Sequence[Hashable] | None = None) -> dict[str, float | int | None]:
    """Return the share of true outcomes, its 95% interval and their number; the value is None
    without outcomes.

    clusters: each outcome's unit of dependence, such as its image. If outcomes share one, the
    interval is a bootstrap interval over the clusters, otherwise Wilson's.
    """
    if clusters is not None and len(set(clusters)) < len(outcomes):
        hits_and_trials = np.stack([outcomes.astype(float), np.ones(len(outcomes))], axis=1)
        stats = SufficientStats(
            clusters, hits_and_trials, lambda sums: {"share": sums[..., 0] / sums[..., 1]}, proportions={"share": (0, 1)}
        )
        return {**(with_intervals(stats, SEED)[0]["share"] or {}), "n": len(outcomes)}
    low, high = wilson(int(outcomes.sum()), len(outcomes))
    return {"value": float(outcomes.mean()) if len(outcomes) else None, "low": low, "high": high, "n": len(outcomes)}


def fit_temperature(margins: np.ndarray) -> float:
    """Return the maximum-likelihood temperature of C comparisons (Guo et al. 2017, section 4.2); 1
    without any.

    margins: the score of the better answer minus that of the worse one [C].
    """
    if not len(margins):
        return 1.0

    def negative_log_likelihood(log_temperature: float) -> float:
        # -log sigmoid(x) = log(1 + exp(-x))
        return float(np.logaddexp(0, -margins / np.exp(log_temperature)).mean())

    return float(np.exp(minimize_scalar(negative_log_likelihood, bounds=(-5, 5), method="bounded").x))


@dataclass(frozen=True)
class Bin:
    """Comparisons or claims of similar probability: the mean probability, the share that was right
    (with a 95% interval), their number."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


def preference_bins(margins: np.ndarray, temperature: float) -> list[Bin]:
    """Return bins in the probability of the answer that the model prefers, which is from 0.5 to
    1."""
    return reliability_bins(expit(np.abs(margins) / temperature), margins > 0, 0.5)


def reliability_bins(probabilities: np.ndarray, outcomes: np.ndarray, min_probability: float = 0.0) -> list[Bin]:
    """Return bins of equal width in a probability from `min_probability` to 1, without the empty
    ones."""
    positions = (probabilities - min_probability) / (1 - min_probability) * NUM_BINS
    bin_indices = np.minimum(positions.astype(int), NUM_BINS - 1)  # a probability of 1 belongs to the last bin
    bins = []
    for bin_index in range(NUM_BINS):
        in_bin = bin_indices == bin_index
        n = int(in_bin.sum())
        if n:
            low, high = wilson(int(outcomes[in_bin].sum()), n)
            bins.append(Bin(float(probabilities[in_bin].mean()), float(outcomes[in_bin].mean()), low, high, n))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return the mean of |accuracy - confidence| over bins, weighted by their size (Naeini et al.
    2015)."""
    total = sum(bin_.n for bin_ in bins)
    return sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in bins) / total if total else 0.0


def draw_reliability(axes: Any, bins: Sequence[Bin], min_probability: float = 0.0) -> None:
    """Draw a reliability diagram with 95% intervals on matplotlib axes, for probabilities from
    `min_probability`."""
    x, y = [bin_.confidence for bin_ in bins], np.array([bin_.accuracy for bin_ in bins])
    errors = np.abs(np.array([[bin_.low for bin_ in bins], [bin_.high for bin_ in bins]]) - y)
    axes.plot([min_probability, 1], [min_probability, 1], color="0.6", linewidth=0.8)
    axes.errorbar(x, y, errors, marker="o", markersize=4, linewidth=1, elinewidth=0.8, color="#4a90d9")


def auroc(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Return the area under the ROC curve with its 95% interval; NaN unless there are true and
    false labels.

    It is the probability that a true example scores higher than a false one, ties counting half.
    The interval is the score-type one of Newcombe 2006 (method 5), which has a width even if the
    scores separate the labels perfectly.
    """
    num_true, num_false = int(labels.sum()), int((~labels).sum())
    if not num_true or not num_false:
        return float("nan"), float("nan"), float("nan")
    from scipy.stats import mannwhitneyu  # takes a second to load

    auc = float(mannwhitneyu(scores[labels], scores[~labels]).statistic) / (num_true * num_false)
    effective_size = (num_true + num_false) / 2 - 1

    def residual(candidate: float, sign: int) -> float:
        """Return the distance of a candidate bound from `auc`, minus Z_95 standard errors there."""
        variance = (
            candidate
            * (1 - candidate)
            * (1 + effective_size * (1 - candidate) / (2 - candidate) + effective_size * candidate / (1 + candidate))
            / (num_true * num_false)
        )
        return candidate - auc - sign * Z_95 * float(np.sqrt(variance))

    # An area of 0 or 1 also solves the equation: exclude these from the search.
    low = 0.0 if auc == 0 else float(brentq(residual, 0, min(auc, 1 - 1e-9), args=(-1,)))
    high = 1.0 if auc == 1 else float(brentq(residual, max(auc, 1e-9), 1, args=(1,)))
    return auc, low, high


def fit_logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the a and b that maximise the likelihood of the labels under sigmoid(a * score + b)
    (Platt 1999).

    Scores are standardised first, and a is penalised by 0.001 a², so that scores which separate the
    labels perfectly still give finite values.
    """
    mean, scale = float(scores.mean()), float(scores.std()) or 1.0
    scaled = (scores - mean) / scale

    def loss(coefficients: np.ndarray) -> float:
        logit = coefficients[0] * scaled + coefficients[1]
        return float(np.logaddexp(0, np.where(labels, -logit, logit)).mean() + 1e-3 * coefficients[0] ** 2)

    a, b = minimize(loss, np.zeros(2)).x
    return float(a / scale), float(b - a * mean / scale)
