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
    more: figures that are no function of sums, with intervals of their own; they stand in result.json as they are.
    """

    clusters: Sequence[Hashable]
    columns_RK: np.ndarray
    metrics: Callable[[np.ndarray], Mapping[str, Any]]
    reasons: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    more: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

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
    return found | {name: dict(leaf) for name, leaf in counted.more.items()}, reasons


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


# ---- two of them -----------------------------------------------------------------------------------------------------

POWER = 0.8416212335729143
"""The standard normal's 80% point."""
Z = 1.959963984540054


def paired(a: Counted, b: Counted, seed: int, draws: int = 2 * DRAWS) -> dict[str, dict[str, float] | None]:
    """Of every metric b minus a over the same clusters, resampled together: `a`, `b`, `difference`, its 95% interval `low` and `high`, `p`
    (two-sided, of no difference), and `detectable`, the difference that such data would show in 80% of trials. None where either has no value."""
    (names_a, sums_a), (names_b, sums_b) = a.by_cluster(), b.by_cluster()
    place = {name: number for number, name in enumerate(dict.fromkeys([*names_a, *names_b]))}
    if not place:
        return dict.fromkeys(a.metrics(sums_a.sum(0)))
    table_a, table_b = np.zeros((len(place), sums_a.shape[1])), np.zeros((len(place), sums_b.shape[1]))
    table_a[[place[n] for n in names_a]] = sums_a
    table_b[[place[n] for n in names_b]] = sums_b
    weights = _resampled(len(place), seed, draws)
    found: dict[str, dict[str, float] | None] = {}
    with np.errstate(all="ignore"):
        value_a, value_b = a.metrics(table_a.sum(0)), b.metrics(table_b.sum(0))
        drawn_a, drawn_b = a.metrics(weights @ table_a), b.metrics(weights @ table_b)
    for name in value_a:
        one, other = float(value_a[name]), float(value_b[name]) if name in value_b else np.nan
        if not (np.isfinite(one) and np.isfinite(other)):
            found[name] = None
            continue
        apart = np.asarray(drawn_b[name], float) - np.asarray(drawn_a[name], float)
        apart = apart[np.isfinite(apart)]
        low, high = np.percentile(apart, [2.5, 97.5]) if apart.size else (np.nan, np.nan)
        tail = min((apart <= 0).sum(), (apart >= 0).sum())
        found[name] = {
            "a": one, "b": other, "difference": other - one, "low": float(low), "high": float(high),
            "p": float(min(1.0, 2 * (tail + 1) / (apart.size + 1))), "detectable": float((Z + POWER) * apart.std()) if apart.size else np.nan,
        }  # fmt: skip
    return found


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p that so many are right in one alone, if either were as likely (McNemar 1947)."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
