"""Metrics with intervals: the bootstrap over clusters, alone and paired, Wilson's interval,
McNemar's test. No torch.

Answers about one image are not independent, so images are resampled, each with all its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

NUM_RESAMPLES = 1000
"""Bootstrap samples of an interval. A paired comparison takes twice as many."""
RESAMPLES_PER_BLOCK = 64
"""Bootstrap samples that are in memory together."""
MIN_CLUSTERS = 6
"""Clusters that a comparison needs: with fewer, no exact two-sided test reaches p = 0.05."""
Z_95 = 1.959963984540054
"""The 97.5% point of the standard normal distribution, for two-sided 95% intervals."""
Z_POWER_80 = 0.8416212335729143
"""The 80% point of the standard normal distribution."""
MetricsOfSums = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Maps sums of columns [..., K] to metrics [...] by name. NaN where a metric is undefined."""
Interval = dict[str, float]
"""A metric as in result.json: {"value", "low", "high"}."""


class Proportion(NamedTuple):
    """A metric that is a share of trials: the columns whose sums are its hits and its trials, and
    its maximum (100 for percent)."""

    hits: int | Sequence[int]
    trials: int | Sequence[int]
    scale: float = 1.0

    def has_single_trials(self, sums_CK: np.ndarray) -> bool:
        """Return whether no cluster has several trials, so that trials are independent."""
        return bool((self._sum(sums_CK, self.trials) <= 1).all())

    def interval(self, sums_CK: np.ndarray) -> tuple[float, float]:
        """Return Wilson's interval, with each of C clusters as one trial; 0 to `scale` without
        trials."""
        hits_C, trials_C = self._sum(sums_CK, self.hits), self._sum(sums_CK, self.trials)
        num_clusters = int((trials_C > 0).sum())
        low, high = wilson(num_clusters * hits_C.sum() / max(trials_C.sum(), 1), num_clusters)
        return self.scale * low, self.scale * high

    @staticmethod
    def _sum(sums_CK: np.ndarray, columns: int | Sequence[int]) -> np.ndarray:
        return np.asarray(sums_CK[:, np.atleast_1d(columns)].sum(1))


@dataclass(frozen=True)
class SufficientStats:
    """A benchmark's rows as numbers that add up, and its metrics as functions of their sums.

    This is all that an interval or a comparison of two runs needs.

    clusters: for each of R rows, its unit of dependence (its image). columns_RK: what is summed.
    metrics: from sums [..., K] to values [...] by name. A name `part/metric` is nested in
    result.json. undefined: why a metric is undefined, by its name or part; the reason under ""
    applies to all others. proportions: metrics that are shares of trials. They get Wilson's
    interval if no cluster has several trials, or if all clusters are alike, so that resampling
    them shows no width. extra: metrics that are not functions of sums, with their own intervals.
    """

    clusters: Sequence[Hashable]
    columns_RK: np.ndarray
    metrics: MetricsOfSums
    undefined: Mapping[str, str] = field(default_factory=dict)
    proportions: Mapping[str, Proportion | tuple[int, int]] = field(default_factory=dict)
    extra: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def cluster_sums(self) -> tuple[list[Hashable], np.ndarray]:
        """Return the C clusters in order of appearance, and the sums of their rows [C, K]."""
        index_of: dict[Hashable, int] = {}
        row_clusters = np.array([index_of.setdefault(cluster, len(index_of)) for cluster in self.clusters], dtype=int)
        sums_CK = np.zeros((len(index_of), self.columns_RK.shape[1] if self.columns_RK.ndim == 2 else 0))
        # Unlike `+=`, `add.at` adds all rows of a cluster, not only the last.
        np.add.at(sums_CK, row_clusters, self.columns_RK.astype(float))
        return list(index_of), sums_CK


def with_intervals(stats: SufficientStats, seed: int) -> tuple[dict[str, Interval | None], dict[str, str]]:
    """Return every metric with its 95% interval, None if it is undefined, and the reasons for that
    by name."""
    clusters, sums_CK = stats.cluster_sums()
    with np.errstate(all="ignore"):  # undefined metrics divide by 0
        values = stats.metrics(sums_CK.sum(0))
        resampled = values
        if clusters:
            resampled = stats.metrics(_resampled_sums(sums_CK, seed, NUM_RESAMPLES))
    intervals: dict[str, Interval | None] = {}
    reasons = {}
    for name, value in values.items():
        metric = float(value)
        if not np.isfinite(metric):
            intervals[name], reasons[name] = None, _undefined_reason(stats.undefined, name)
            continue
        finite = np.asarray(resampled[name])[np.isfinite(resampled[name])]
        low, high = np.percentile(finite, [2.5, 97.5]) if finite.size else (metric, metric)
        proportion = Proportion(*stats.proportions[name]) if name in stats.proportions else None
        if proportion is not None and (low == high or proportion.has_single_trials(sums_CK)):
            low, high = proportion.interval(sums_CK)
        intervals[name] = {"value": metric, "low": float(low), "high": float(high)}
    return intervals | {name: dict(leaf) for name, leaf in stats.extra.items()}, reasons


def _undefined_reason(reasons: Mapping[str, str], name: str) -> str:
    part = name.partition("/")[0]
    return reasons.get(name) or reasons.get(part) or reasons.get("") or "there is nothing to divide by"


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{"a/x": 1}` as `{"a": {"x": 1}}`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, metric = name.rpartition("/")
        (tree.setdefault(part, {}) if part else tree)[metric] = value
    return tree


def bootstrap_weights(num_rows: int, rng: np.random.Generator, num_resamples: int) -> Iterator[np.ndarray]:
    """Yield how often each row occurs in each bootstrap sample (Efron 1979), in blocks
    [RESAMPLES_PER_BLOCK, rows]: all of 1,000 samples of 20,000 rows would fill 160 MB."""
    probabilities = np.full(num_rows, 1 / num_rows)
    for start in range(0, num_resamples, RESAMPLES_PER_BLOCK):
        yield rng.multinomial(num_rows, probabilities, size=min(RESAMPLES_PER_BLOCK, num_resamples - start))


def _resampled_sums(sums_CK: np.ndarray, seed: int, num_resamples: int) -> np.ndarray:
    """Return the sums of the columns in each bootstrap sample of C clusters [samples, K]."""
    blocks = bootstrap_weights(len(sums_CK), np.random.default_rng(seed), num_resamples)
    return np.concatenate([weights @ sums_CK for weights in blocks])


def wilson(hits: float, trials: float, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson interval of a proportion (Wilson 1927), by default at 95%; (0, 1) without
    trials."""
    if trials <= 0:
        return 0.0, 1.0
    p, spread = hits / trials, z * z / trials
    half_width = z * (p * (1 - p) / trials + spread / (4 * trials)) ** 0.5
    low, high = ((p + spread / 2 + sign * half_width) / (1 + spread) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def accuracy_by_group(
    clusters: Sequence[Hashable],
    outcomes: Sequence[bool],
    groups: Sequence[Sequence[str]],
    all_groups: Sequence[str],
    reason: str,
    scale: float = 1.0,
) -> SufficientStats:
    """Return statistics of accuracy: over all rows as `accuracy`, over each group as
    `GROUP/accuracy`.

    outcomes: whether each row is right. groups: the groups that each row belongs to. reason: why an
    accuracy is undefined. scale: 100 for percent.
    """
    names = ["", *all_groups]
    columns_RG2 = np.zeros((len(outcomes), len(names), 2))  # right answers, and answers
    for row, (outcome, row_groups) in enumerate(zip(outcomes, groups, strict=True)):
        for name in ("", *row_groups):
            columns_RG2[row, names.index(name)] = outcome, 1

    def metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
        counts = sums.reshape(*sums.shape[:-1], len(names), 2)
        return {
            f"{name}/accuracy" if name else "accuracy": scale * counts[..., i, 0] / counts[..., i, 1]
            for i, name in enumerate(names)
        }

    columns_RK = columns_RG2.reshape(len(outcomes), 2 * len(names))
    proportions = {
        f"{name}/accuracy" if name else "accuracy": Proportion(2 * i, 2 * i + 1, scale) for i, name in enumerate(names)
    }
    return SufficientStats(clusters, columns_RK, metrics, {"": reason}, proportions)


def mean_interval(values: Sequence[float]) -> Interval:
    """Return the mean of independent values and its 95% t-interval, without width for one value."""
    n, mean = len(values), float(np.mean(values))
    half_width = float(stdtrit(n - 1, 0.975) * np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0
    return {"value": mean, "low": mean - half_width, "high": mean + half_width}


def fold_interval(name: str, values: Sequence[float]) -> dict[str, float | list[float]]:
    """Return the `mean_interval` over disjoint folds: the mean as `name`, its interval as
    `NAME_ci`.

    One fold has no interval. It is for diversity metrics: they measure repetition, and resampling
    would repeat answers.
    """
    mean = mean_interval(values)
    return {name: mean["value"]} | ({f"{name}_ci": [mean["low"], mean["high"]]} if len(values) > 1 else {})


# ---- two runs ------------------------------------------------------------------------------------


def paired_bootstrap(a: SufficientStats, b: SufficientStats, seed: int) -> dict[str, dict[str, float] | None]:
    """Compare every metric of b with that of a over the same clusters, which are resampled
    together.

    A comparison has `a`, `b`, their `difference` (b minus a), its 95% interval `low` and `high`,
    `p` (two-sided, of no difference), and `detectable`, the difference that such data would detect
    in 80% of trials; these are NaN if the metric uses fewer than MIN_CLUSTERS clusters. It is None
    if either metric is undefined.
    """
    (names_a, sums_a), (names_b, sums_b) = a.cluster_sums(), b.cluster_sums()
    index_of = {name: number for number, name in enumerate(dict.fromkeys([*names_a, *names_b]))}
    if not index_of:
        return dict.fromkeys(a.metrics(sums_a.sum(0)))
    # The table's rows are the clusters of either, so that one set of weights resamples both.
    width_a = sums_a.shape[1]
    table = np.zeros((len(index_of), width_a + sums_b.shape[1]))
    table[[index_of[name] for name in names_a], :width_a] = sums_a
    table[[index_of[name] for name in names_b], width_a:] = sums_b
    sums, resampled = table.sum(0), _resampled_sums(table, seed, 2 * NUM_RESAMPLES)
    with np.errstate(all="ignore"):  # undefined metrics divide by 0
        values_a, values_b = a.metrics(sums[:width_a]), b.metrics(sums[width_a:])
        resampled_a, resampled_b = a.metrics(resampled[:, :width_a]), b.metrics(resampled[:, width_a:])
    comparisons: dict[str, dict[str, float] | None] = {}
    for name in values_a:
        metric_a, metric_b = float(values_a[name]), float(values_b[name]) if name in values_b else np.nan
        if not (np.isfinite(metric_a) and np.isfinite(metric_b)):
            comparisons[name] = None
            continue
        differences = np.asarray(resampled_b[name], float) - np.asarray(resampled_a[name], float)
        # A resample lacks all k clusters that a metric uses with a probability of about e^-k.
        has_few = np.mean(~np.isfinite(differences)) > np.exp(-MIN_CLUSTERS)
        if len(index_of) < MIN_CLUSTERS or has_few:
            differences = differences[:0]
        comparisons[name] = {
            "a": metric_a,
            "b": metric_b,
            "difference": metric_b - metric_a,
            **_difference_statistics(differences[np.isfinite(differences)]),
        }
    return comparisons


def _difference_statistics(differences: np.ndarray) -> dict[str, float]:
    """Return interval, p-value and detectable difference of resampled differences.

    All are NaN without any.
    """
    if not differences.size:
        return dict.fromkeys(("low", "high", "p", "detectable"), np.nan)
    low, high = np.percentile(differences, [2.5, 97.5])
    tail_count = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "low": float(low),
        "high": float(high),
        # One is added to both counts, so that p is never 0.
        "p": float(min(1.0, 2 * (tail_count + 1) / (differences.size + 1))),
        # The mean must exceed Z_95 standard errors in 80% of trials.
        "detectable": float((Z_95 + Z_POWER_80) * differences.std()),
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value of these numbers of examples that only one of two runs has
    right (McNemar 1947)."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
