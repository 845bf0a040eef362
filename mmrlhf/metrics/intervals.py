"""Numbers with intervals: the bootstrap over clusters, alone and paired, Wilson's interval, McNemar's test. No torch.

Rows of one picture are no independent draws: what is resampled is the picture, with all its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NUM_RESAMPLES = 1000
"""Bootstrap samples."""
NestedMetrics = Mapping[str, Any]
"""Metrics by name, nested by part; a leaf is {"value", "low", "high"} or None."""


@dataclass(frozen=True)
class SufficientStats:
    """A benchmark's rows as numbers that add up, and its metrics as functions of their sums: all that an interval or a comparison needs.

    clusters: of each of R rows, what it shares with rows that are not independent of it (its picture).
    columns_RK: what is summed.
    metrics: sums [..., K] to values [...] by name, NaN where there is none; a name `part/metric` is nested in result.json.
    reasons: why a metric has no value, by its name or part; the reason under "" holds for all others.
    shares: metrics that are one column over another (their numbers), each row one trial: they get Wilson's interval when every
    cluster is a single row.
    more: figures that are no function of sums, with intervals of their own; they stand in result.json as they are.
    """

    clusters: Sequence[Hashable]
    columns_RK: np.ndarray
    metrics: Callable[[np.ndarray], Mapping[str, Any]]
    undefined: Mapping[str, str] = field(default_factory=dict)
    proportions: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def cluster_sums(self) -> tuple[list[Hashable], np.ndarray]:
        """The clusters in order of appearance, and the sums [C, K] of their rows."""
        cluster_index: dict[Hashable, int] = {}
        cluster_indices = np.array([cluster_index.setdefault(c, len(cluster_index)) for c in self.clusters], dtype=int)
        sums = np.zeros((len(cluster_index), self.columns_RK.shape[1] if self.columns_RK.ndim == 2 else 0))
        np.add.at(sums, cluster_indices, self.columns_RK.astype(float))
        return list(cluster_index), sums


def with_intervals(
    stats: SufficientStats, seed: int, num_resamples: int = NUM_RESAMPLES
) -> tuple[dict[str, dict[str, float] | None], dict[str, str]]:
    """Every metric with its 95% interval, None where it has no value, and the reasons for that."""
    clusters, sums_CK = stats.cluster_sums()
    with np.errstate(all="ignore"):
        values = stats.metrics(sums_CK.sum(0))
        resampled = stats.metrics(_bootstrap_weights(len(clusters), seed, num_resamples) @ sums_CK) if len(clusters) else values
    one_row_per_cluster = len(clusters) == len(stats.columns_RK)
    intervals: dict[str, dict[str, float] | None] = {}
    reasons = {}
    for name, metric in values.items():
        metric = float(metric)
        if not np.isfinite(metric):
            intervals[name], reasons[name] = None, _undefined_reason(stats.undefined, name)
            continue
        if name in stats.proportions and one_row_per_cluster:
            hits, trials = (float(sums_CK[:, i].sum()) for i in stats.proportions[name])
            scale = metric / (hits / trials) if hits else 1.0
            low, high = (scale * bound for bound in wilson(hits, trials))
        else:
            finite = np.asarray(resampled[name])[np.isfinite(resampled[name])]
            low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (metric, metric)
        intervals[name] = {"value": metric, "low": float(low), "high": float(high)}
    return intervals | {name: dict(leaf) for name, leaf in stats.extra.items()}, reasons


def _undefined_reason(reasons: Mapping[str, str], name: str) -> str:
    part = name.partition("/")[0]
    return reasons.get(name) or reasons.get(part) or reasons.get("") or "nothing to divide by"


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a/x": 1}` as `{"a": {"x": 1}}`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, metric = name.rpartition("/")
        (tree.setdefault(part, {}) if part else tree)[metric] = value
    return tree


def _bootstrap_weights(num_rows: int, seed: int, num_resamples: int) -> np.ndarray:
    """How often each row is in each bootstrap sample [draws, rows] (Efron 1979)."""
    return np.random.default_rng(seed).multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=num_resamples)


def wilson(hits: float, trials: float, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (1927); (0, 1) without trials."""
    if trials <= 0:
        return 0.0, 1.0
    p, spread = hits / trials, z * z / trials
    half_width = z * (p * (1 - p) / trials + spread / (4 * trials)) ** 0.5
    low, high = ((p + spread / 2 + sign * half_width) / (1 + spread) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def bootstrap(
    columns_RK: np.ndarray, metrics: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int, num_resamples: int = NUM_RESAMPLES
) -> dict[str, float | list[float]]:
    """Metrics of summed columns, with 95% percentile intervals over resampled rows.

    `metrics` maps sums [..., K] to values [...]. R rows are resampled with replacement, by multinomial weights.
    """
    values, resampled = metrics(columns_RK.sum(0)), metrics(_bootstrap_weights(len(columns_RK), seed, num_resamples) @ columns_RK)
    results: dict[str, float | list[float]] = {}
    for name, v in values.items():
        low, high = np.percentile(resampled[name], [2.5, 97.5])
        results |= {name: float(v), f"{name}_ci": [float(low), float(high)]}
    return results


def fold_interval(name: str, values: Sequence[float]) -> dict[str, float | list[float]]:
    """Mean over disjoint folds with a normal 95% interval; resampling would repeat answers, and repetition is what a
    diversity measures."""
    mean = float(np.mean(values))
    half_width = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {name: mean, f"{name}_ci": [mean - half_width, mean + half_width]}


# ---- two of them -----------------------------------------------------------------------------------------------------

Z_POWER_80 = 0.8416212335729143
"""The standard normal's 80% point."""
Z_95 = 1.959963984540054


def paired_bootstrap(
    a: SufficientStats, b: SufficientStats, seed: int, num_resamples: int = 2 * NUM_RESAMPLES
) -> dict[str, dict[str, float] | None]:
    """Of every metric b minus a over the same clusters, resampled together: `a`, `b`, `difference`, its 95% interval `low` and `high`, `p`
    (two-sided, of no difference), and `detectable`, the difference that such data would show in 80% of trials. None where either has no value."""
    (names_a, sums_a), (names_b, sums_b) = a.cluster_sums(), b.cluster_sums()
    cluster_index = {name: number for number, name in enumerate(dict.fromkeys([*names_a, *names_b]))}
    if not cluster_index:
        return dict.fromkeys(a.metrics(sums_a.sum(0)))
    table_a, table_b = np.zeros((len(cluster_index), sums_a.shape[1])), np.zeros((len(cluster_index), sums_b.shape[1]))
    table_a[[cluster_index[n] for n in names_a]] = sums_a
    table_b[[cluster_index[n] for n in names_b]] = sums_b
    weights = _bootstrap_weights(len(cluster_index), seed, num_resamples)
    comparisons: dict[str, dict[str, float] | None] = {}
    with np.errstate(all="ignore"):
        values_a, values_b = a.metrics(table_a.sum(0)), b.metrics(table_b.sum(0))
        resampled_a, resampled_b = a.metrics(weights @ table_a), b.metrics(weights @ table_b)
    for name in values_a:
        metric_a, metric_b = float(values_a[name]), float(values_b[name]) if name in values_b else np.nan
        if not (np.isfinite(metric_a) and np.isfinite(metric_b)):
            comparisons[name] = None
            continue
        differences = np.asarray(resampled_b[name], float) - np.asarray(resampled_a[name], float)
        differences = differences[np.isfinite(differences)]
        low, high = np.percentile(differences, [2.5, 97.5]) if differences.size else (np.nan, np.nan)
        tail_count = min((differences <= 0).sum(), (differences >= 0).sum())
        comparisons[name] = {
            "a": metric_a, "b": metric_b, "difference": metric_b - metric_a, "low": float(low), "high": float(high),
            "p": float(min(1.0, 2 * (tail_count + 1) / (differences.size + 1))), "detectable": float((Z_95 + Z_POWER_80) * differences.std()) if differences.size else np.nan,
        }  # fmt: skip
    return comparisons


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p that so many are right in one alone, if either were as likely (McNemar 1947)."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
