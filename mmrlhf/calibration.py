"""How far a reward model's certainty can be believed: temperature, expected calibration error, intervals of shares.

Of two answers the first is taken to be the better one with probability sigmoid((first - second) / temperature).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from scipy.stats import binomtest

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
    """Comparisons of similar certainty: how sure the model was on average, and how often right."""

    sure: float
    right: float
    low: float
    high: float
    n: int


def reliability(margins: np.ndarray, temperature: float) -> list[Bin]:
    """Bins of equal width in the probability of the answer that the model prefers, 0.5 to 1; empty ones are left out."""
    sure, right = expit(np.abs(margins) / temperature), margins > 0
    place = np.minimum(((sure - 0.5) * 2 * BINS).astype(int), BINS - 1)
    found = []
    for b in range(BINS):
        if (here := place == b).any():
            low, high = interval(int(right[here].sum()), int(here.sum()))
            found.append(Bin(float(sure[here].mean()), float(right[here].mean()), low, high, int(here.sum())))
    return found


def expected_calibration_error(bins: list[Bin]) -> float:
    """The mean over comparisons of |right - sure| of their bin. Naeini et al. 2015."""
    total = sum(b.n for b in bins)
    return sum(b.n * abs(b.right - b.sure) for b in bins) / total if total else 0.0


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
