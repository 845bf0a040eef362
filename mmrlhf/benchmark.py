"""Benchmarks: one small file each, found by name in `eval/` or by path, and the statistics they share.

A benchmark file has `load(data, limit) -> list[Example]`, `score(example, answers) -> dict` (one JSON-able row, with what
decided it) and `aggregate(rows, seed) -> {part: {metric: value, metric_ci: [low, high]}}`, and states VERSION, LICENSE and
HEADLINE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from mmrlhf.content import find, load_module
from mmrlhf.records import InputError


def load_benchmark(name: str) -> ModuleType:
    """`name` is a file of `eval/` without its ending, or a path that ends in .py. Raises InputError for neither."""
    path = find("eval", name)
    module = load_module(path)
    lacking = [f for f in ("load", "score", "aggregate") if not callable(getattr(module, f, None))]
    if lacking:
        raise InputError(f"{path} is no benchmark: it has no function {' and no '.join(lacking)}")
    return module


def bootstrap(
    parts_RK: np.ndarray, metrics: Callable[[np.ndarray], dict[str, np.ndarray]], seed: int, draws: int = 1000
) -> dict[str, float | list[float]]:
    """Metrics of summed columns, with 95% percentile intervals over resampled rows (Efron 1979).

    `metrics` maps sums [..., K] to values [...]. R rows are resampled with replacement, by multinomial weights.
    """
    rows = len(parts_RK)
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=draws)
    value, drawn = metrics(parts_RK.sum(0)), metrics(weights @ parts_RK)
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


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016), words split at white space; 0 without any."""
    grams = [tuple(words[i : i + n]) for words in (a.lower().split() for a in answers) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(answers: Sequence[str], vocabulary: int) -> float:
    """Expectation-adjusted distinct words (Liu et al. 2022): distinct over V (1 - ((V - 1) / V) ** C) for C words."""
    words = [w for a in answers for w in a.lower().split()]
    return len(set(words)) / (vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(words))) if words else 0.0
