"""How far a certainty can be believed: temperature, expected calibration error, AUROC, intervals of shares.

A reward model takes the first of two answers to be the better one with probability sigmoid((first - second) / temperature); a verifier takes a
claim to be true with a probability of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest, mannwhitneyu, norm

NUM_BINS = 10


def interval(num_right: int, total: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); all of [0, 1] for none."""
    if total == 0:
        return 0.0, 1.0
    result = binomtest(num_right, total).proportion_ci(method="wilson")
    return float(result.low), float(result.high)


def proportion(outcomes: np.ndarray) -> dict[str, float | int | None]:
    """A share of booleans as reports have it: value, interval, and of how many; None of none."""
    low, high = interval(int(outcomes.sum()), len(outcomes))
    return {"value": float(outcomes.mean()) if len(outcomes) else None, "low": low, "high": high, "n": len(outcomes)}


def fit_temperature(margins: np.ndarray) -> float:
    """The temperature that makes comparisons likeliest, given the better answer's score less the worse one's [C]. Guo et al. 2017, section 4.2."""
    if not len(margins):
        return 1.0
    result = minimize_scalar(
        lambda log_temperature: np.logaddexp(0, -margins / np.exp(log_temperature)).mean(), bounds=(-5, 5), method="bounded"
    )
    return float(np.exp(result.x))


@dataclass(frozen=True)
class Bin:
    """Comparisons or claims of similar certainty: how sure the model was on average, and how often right."""

    confidence: float
    accuracy: float
    low: float
    high: float
    n: int


def preference_bins(margins: np.ndarray, temperature: float) -> list[Bin]:
    """Bins in the probability of the answer that the model prefers, 0.5 to 1."""
    return reliability_bins(expit(np.abs(margins) / temperature), margins > 0, 0.5)


def reliability_bins(probabilities: np.ndarray, outcomes: np.ndarray, min_probability: float = 0.0) -> list[Bin]:
    """Bins of equal width in a probability from `lowest` to 1, with how often it came true; empty ones are left out."""
    bin_indices = np.minimum(((probabilities - min_probability) / (1 - min_probability) * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = []
    for bin_index in range(NUM_BINS):
        if (in_bin := bin_indices == bin_index).any():
            low, high = interval(int(outcomes[in_bin].sum()), int(in_bin.sum()))
            bins.append(Bin(float(probabilities[in_bin].mean()), float(outcomes[in_bin].mean()), low, high, int(in_bin.sum())))
    return bins


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean over comparisons or claims of |right - sure| of their bin. Naeini et al. 2015."""
    total = sum(bin_.n for bin_ in bins)
    return sum(bin_.n * abs(bin_.accuracy - bin_.confidence) for bin_ in bins) / total if total else 0.0


def draw_reliability(axes: Any, bins: Sequence[Bin], min_probability: float = 0.0) -> None:
    """A reliability diagram with 95% intervals, on axes of matplotlib's; certainty begins at `lowest`."""
    x, y = [bin_.confidence for bin_ in bins], np.array([bin_.accuracy for bin_ in bins])
    errors = np.abs(np.array([[bin_.low for bin_ in bins], [bin_.high for bin_ in bins]]) - y)
    axes.plot([min_probability, 1], [min_probability, 1], color="0.6", linewidth=0.8)
    axes.errorbar(x, y, errors, marker="o", markersize=4, linewidth=1, elinewidth=0.8, color="#2f5fa8")


def auroc(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """How often a true one has the higher number than a false one, ties counting half, with its 95% interval; nan without both.

    The interval is the score-like one of Newcombe 2006 (method 5), which has a width where the two are parted without fault.
    """
    num_true, num_false = int(labels.sum()), int((~labels).sum())
    if not num_true or not num_false:
        return float("nan"), float("nan"), float("nan")
    auc = float(mannwhitneyu(scores[labels], scores[~labels]).statistic) / (num_true * num_false)
    effective_size = (num_true + num_false) / 2 - 1

    def residual(candidate: float, sign: int) -> float:
        variance = (
            candidate
            * (1 - candidate)
            * (1 + effective_size * (1 - candidate) / (2 - candidate) + effective_size * candidate / (1 + candidate))
            / (num_true * num_false)
        )
        return candidate - auc - sign * float(norm.ppf(0.975)) * float(np.sqrt(variance))

    # Where the two are parted without fault the area itself solves the equation, besides the bound that is meant.
    low = 0.0 if auc == 0 else float(brentq(residual, 0, min(auc, 1 - 1e-9), args=(-1,)))
    high = 1.0 if auc == 1 else float(brentq(residual, max(auc, 1e-9), 1, args=(1,)))
    return auc, low, high


def fit_logistic(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """a and b that make `true` likeliest under sigmoid(a x + b), x having been scaled to unit variance and a penalised by 0.001 a², so that
    numbers which part the two without fault still give finite ones. Platt 1999."""
    mean, scale = float(scores.mean()), float(scores.std()) or 1.0
    scaled = (scores - mean) / scale

    def loss(coefficients: np.ndarray) -> float:
        logit = coefficients[0] * scaled + coefficients[1]
        return float(np.logaddexp(0, np.where(labels, -logit, logit)).mean() + 1e-3 * coefficients[0] ** 2)

    a, b = minimize(loss, np.zeros(2)).x
    return float(a / scale), float(b - a * mean / scale)
