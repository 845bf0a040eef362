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

BINS = 10


def interval(right: int, of: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927); all of [0, 1] for none."""
    if of == 0:
        return 0.0, 1.0
    found = binomtest(right, of).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def share(right: np.ndarray) -> dict[str, float | int | None]:
    """A share of booleans as reports have it: value, interval, and of how many; None of none."""
    low, high = interval(int(right.sum()), len(right))
    return {"value": float(right.mean()) if len(right) else None, "low": low, "high": high, "n": len(right)}


def fit_temperature(margins: np.ndarray) -> float:
    """The temperature that makes comparisons likeliest, given the better answer's score less the worse one's [C]. Guo et al. 2017, section 4.2."""
    if not len(margins):
        return 1.0
    found = minimize_scalar(lambda log_t: np.logaddexp(0, -margins / np.exp(log_t)).mean(), bounds=(-5, 5), method="bounded")
    return float(np.exp(found.x))


@dataclass(frozen=True)
class Bin:
    """Comparisons or claims of similar certainty: how sure the model was on average, and how often right."""

    sure: float
    right: float
    low: float
    high: float
    n: int


def reliability(margins: np.ndarray, temperature: float) -> list[Bin]:
    """Bins in the probability of the answer that the model prefers, 0.5 to 1."""
    return binned(expit(np.abs(margins) / temperature), margins > 0, 0.5)


def binned(sure: np.ndarray, right: np.ndarray, lowest: float = 0.0) -> list[Bin]:
    """Bins of equal width in a probability from `lowest` to 1, with how often it came true; empty ones are left out."""
    place = np.minimum(((sure - lowest) / (1 - lowest) * BINS).astype(int), BINS - 1)
    found = []
    for b in range(BINS):
        if (here := place == b).any():
            low, high = interval(int(right[here].sum()), int(here.sum()))
            found.append(Bin(float(sure[here].mean()), float(right[here].mean()), low, high, int(here.sum())))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean over comparisons or claims of |right - sure| of their bin. Naeini et al. 2015."""
    total = sum(b.n for b in bins)
    return sum(b.n * abs(b.right - b.sure) for b in bins) / total if total else 0.0


def draw_reliability(axes: Any, bins: Sequence[Bin], lowest: float = 0.0) -> None:
    """A reliability diagram with 95% intervals, on axes of matplotlib's; certainty begins at `lowest`."""
    x, y = [b.sure for b in bins], np.array([b.right for b in bins])
    spread = np.abs(np.array([[b.low for b in bins], [b.high for b in bins]]) - y)
    axes.plot([lowest, 1], [lowest, 1], color="0.6", linewidth=0.8)
    axes.errorbar(x, y, spread, marker="o", markersize=4, linewidth=1, elinewidth=0.8, color="#2f5fa8")


def auroc(x: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """How often a true one has the higher number than a false one, ties counting half, with its 95% interval; nan without both.

    The interval is the score-like one of Newcombe 2006 (method 5), which has a width where the two are parted without fault.
    """
    n, m = int(true.sum()), int((~true).sum())
    if not n or not m:
        return float("nan"), float("nan"), float("nan")
    area = float(mannwhitneyu(x[true], x[~true]).statistic) / (n * m)
    more = (n + m) / 2 - 1

    def off(a: float, sign: int) -> float:
        variance = a * (1 - a) * (1 + more * (1 - a) / (2 - a) + more * a / (1 + a)) / (n * m)
        return a - area - sign * float(norm.ppf(0.975)) * float(np.sqrt(variance))

    # Where the two are parted without fault the area itself solves the equation, besides the bound that is meant.
    low = 0.0 if area == 0 else float(brentq(off, 0, min(area, 1 - 1e-9), args=(-1,)))
    high = 1.0 if area == 1 else float(brentq(off, max(area, 1e-9), 1, args=(1,)))
    return area, low, high


def fit_logistic(x: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """a and b that make `true` likeliest under sigmoid(a x + b), x having been scaled to unit variance and a penalised by 0.001 a², so that
    numbers which part the two without fault still give finite ones. Platt 1999."""
    mean, scale = float(x.mean()), float(x.std()) or 1.0
    z = (x - mean) / scale

    def loss(ab: np.ndarray) -> float:
        logit = ab[0] * z + ab[1]
        return float(np.logaddexp(0, np.where(true, -logit, logit)).mean() + 1e-3 * ab[0] ** 2)

    a, b = minimize(loss, np.zeros(2)).x
    return float(a / scale), float(b - a * mean / scale)
