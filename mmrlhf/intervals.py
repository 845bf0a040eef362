"""Numbers with intervals: the bootstrap over clusters, alone and paired, Wilson's interval, McNemar's test. No torch.

Rows of one picture are no independent draws: what is resampled is the picture, with all its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DRAWS = 1000
"""Bootstrap samples."""
Figures = Mapping[str, Any]
"""Metrics by name, nested by part; a leaf is {"value", "low", "high"} or None."""


@dataclass(frozen=True)
class Counted:
    """A benchmark's rows as numbers that add up, and its metrics as functions of their sums: all that an interval or a comparison needs.

    clusters: of each of R rows, what it shares with rows that are not independent of it (its picture).
    columns_RK: what is summed.
    metrics: sums [..., K] to values [...] by name, NaN where there is none; a name `part/metric` is nested in result.json.
    reasons: why a metric has no value, by its name or part; the reason under "" holds for all others.
    shares: metrics that are one column over another (their numbers), each row one trial: they get Wilson's interval when every
    cluster is a single row.
    """

    clusters: Sequence[Hashable]
    columns_RK: np.ndarray
    metrics: Callable[[np.ndarray], Mapping[str, Any]]
    reasons: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def by_cluster(self) -> tuple[list[Hashable], np.ndarray]:
        """The clusters in order of appearance, and the sums [C, K] of their rows."""
        place: dict[Hashable, int] = {}
        at = np.array([place.setdefault(c, len(place)) for c in self.clusters], dtype=int)
        sums = np.zeros((len(place), self.columns_RK.shape[1] if self.columns_RK.ndim == 2 else 0))
        np.add.at(sums, at, self.columns_RK.astype(float))
        return list(place), sums


def figures(counted: Counted, seed: int, draws: int = DRAWS) -> tuple[dict[str, dict[str, float] | None], dict[str, str]]:
    """Every metric with its 95% interval, None where it has no value, and the reasons for that."""
    clusters, sums_CK = counted.by_cluster()
    with np.errstate(all="ignore"):
        value = counted.metrics(sums_CK.sum(0))
        drawn = counted.metrics(_resampled(len(clusters), seed, draws) @ sums_CK) if len(clusters) else value
    single = len(clusters) == len(counted.columns_RK)
    found: dict[str, dict[str, float] | None] = {}
    reasons = {}
    for name, v in value.items():
        v = float(v)
        if not np.isfinite(v):
            found[name], reasons[name] = None, _reason(counted.reasons, name)
            continue
        if name in counted.shares and single:
            hits, trials = (float(sums_CK[:, i].sum()) for i in counted.shares[name])
            scale = v / (hits / trials) if hits else 1.0
            low, high = (scale * bound for bound in wilson(hits, trials))
        else:
            known = np.asarray(drawn[name])[np.isfinite(drawn[name])]
            low, high = np.percentile(known, [2.5, 97.5]) if known.size else (v, v)
        found[name] = {"value": v, "low": float(low), "high": float(high)}
    return found, reasons


def _reason(reasons: Mapping[str, str], name: str) -> str:
    part = name.partition("/")[0]
    return reasons.get(name) or reasons.get(part) or reasons.get("") or "nothing to divide by"


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/x": 1}` as `{"a": {"x": 1}}`."""
    found: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, metric = name.rpartition("/")
        (found.setdefault(part, {}) if part else found)[metric] = value
    return found


def _resampled(rows: int, seed: int, draws: int) -> np.ndarray:
    """How often each row is in each bootstrap sample [draws, rows] (Efron 1979)."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws)


def wilson(hits: float, trials: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (1927); (0, 1) without trials."""
    if trials <= 0:
        return 0.0, 1.0
    p, spread = hits / trials, z * z / trials
    half = z * (p * (1 - p) / trials + spread / (4 * trials)) ** 0.5
    low, high = ((p + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def bootstrap(
    parts_RK: np.ndarray, metrics: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int, draws: int = DRAWS
) -> dict[str, float | list[float]]:
    """Metrics of summed columns, with 95% percentile intervals over resampled rows.

    `metrics` maps sums [..., K] to values [...]. R rows are resampled with replacement, by multinomial weights.
    """
    value, drawn = metrics(parts_RK.sum(0)), metrics(_resampled(len(parts_RK), seed, draws) @ parts_RK)
    found: dict[str, float | list[float]] = {}
    for name, v in value.items():
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        found |= {name: float(v), f"{name}_ci": [float(low), float(high)]}
    return found


def fold_interval(name: str, values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean over disjoint folds with a normal 95% interval; resampling would repeat answers, and repetition is what a
    diversity measures."""
    mean = float(np.mean(values))
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {name: mean, f"{name}_ci": [mean - half, mean + half]}
