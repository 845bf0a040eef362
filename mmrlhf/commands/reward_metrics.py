"""The metrics of `mmrlhf reward-eval` on preferences: accuracy by group, ties, calibration,
injected claims, and the same pairs with other facts or pictures."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy.stats import rankdata

from mmrlhf.facts.corrupt import drop_facts, negate_facts
from mmrlhf.metrics.calibration import SEED, expected_calibration_error, fit_temperature, preference_bins, proportion
from mmrlhf.metrics.intervals import SufficientStats, with_intervals
from mmrlhf.records import Comparison, Fact, ImageSource, Preference
from mmrlhf.rewards.probes import PROBE_KINDS, Probe
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.text.word_counts import count_words

LENGTH_GAP_EDGES = (-0.25, -0.05, 0.05, 0.25)
"""Edges of the length bins: difference in words, better minus worse, over the longer answer."""
FACT_FRACTIONS = (0.75, 0.5, 0.25, 0.0)
"""Fractions of each row's facts to keep."""
SCORE_TOLERANCE = 1e-9
"""Scores closer than this count as equal."""


def perturbed_facts(rows: Sequence[Preference], seed: int) -> dict[str, list[tuple[Fact, ...]]]:
    """Return corrupted facts of every row, by condition.

    The conditions are fewer facts, the facts of the next row with another image, and contradicted
    facts.
    """
    conditions = {}
    for fraction in FACT_FRACTIONS:
        conditions[f"{fraction:.0%} left"] = [
            drop_facts(row.facts, fraction, np.random.default_rng([seed, 5, index])) for index, row in enumerate(rows)
        ]
    conditions["another image's"] = other_facts(rows)
    conditions["contradicted"] = [
        negate_facts(row.facts, 1.0, np.random.default_rng([seed, 6, index]))[0] for index, row in enumerate(rows)
    ]
    return conditions


class HasFactsAndImages(Protocol):
    """A row or a group of answers."""

    @property
    def images(self) -> tuple[ImageSource, ...]: ...

    @property
    def facts(self) -> tuple[Fact, ...]: ...


Row = TypeVar("Row", bound=HasFactsAndImages)


def other_facts(rows: Sequence[HasFactsAndImages]) -> list[tuple[Fact, ...]]:
    """Return for each row the facts of the next row that has another image and facts."""
    return [other.facts if other else () for other in _next_others(rows, lambda row: bool(row.facts))]


def _next_others(rows: Sequence[Row], is_candidate: Callable[[Row], bool]) -> list[Row | None]:
    """Return for each row the next candidate with other images, None without one.

    After the last row comes the first.
    """
    nearest: Row | None = None  # the nearest candidate behind a row
    other: Row | None = None  # the nearest one whose images are not those of `nearest`
    found = []
    for row in chain(reversed(rows), reversed(rows)):
        found.append(other if nearest is not None and nearest.images == row.images else nearest)
        if is_candidate(row):
            if nearest is not None and nearest.images != row.images:
                other = nearest
            nearest = row
    return found[len(rows) :][::-1]  # of the second pass, which has seen all rows


def perturbed_pictures(rows: Sequence[Preference]) -> tuple[list[int], dict[str, list[Preference]]]:
    """Return the rows whose images can be replaced by another row's, and these rows with the images
    of the next row with the same number of other images, and without images.

    A model that is as accurate then judges by the text alone.
    """
    rows_by_count: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        rows_by_count.setdefault(len(row.images), []).append(index)
    others: dict[int, Preference | None] = {}
    for alike in rows_by_count.values():
        others |= zip(alike, _next_others([rows[index] for index in alike], lambda _: True), strict=True)
    indices: list[int] = []
    conditions: dict[str, list[Preference]] = {"another row's": [], "none": []}
    for index, row in enumerate(rows):
        other = others[index]
        if other is None:
            continue
        blind_prompt = tuple(replace(message, image_positions=()) for message in row.prompt)
        indices.append(index)
        conditions["another row's"].append(replace(row, images=other.images))
        conditions["none"].append(replace(row, images=(), prompt=blind_prompt))
    return indices, conditions if indices else {}


def accuracy(rows: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how often the better answer scores higher, in comparisons that are not ties."""
    clusters, is_right = _outcomes(rows, scores)
    return proportion(is_right, clusters)


def accuracy_difference(
    rows: Sequence[Preference], scores: Sequence[Sequence[float]], other_scores: Sequence[Sequence[float]]
) -> dict[str, float] | None:
    """Return the accuracy by some scores minus that by others of the same rows, with its paired 95%
    bootstrap interval over images; None if all are ties."""
    clusters, is_right = _outcomes(rows, scores)
    _, is_other_right = _outcomes(rows, other_scores)
    columns = np.stack([is_right.astype(float) - is_other_right, np.ones(len(clusters))], axis=1)
    stats = SufficientStats(clusters, columns, lambda sums: {"difference": sums[..., 0] / sums[..., 1]})
    return with_intervals(stats, SEED)[0]["difference"]


def _outcomes(rows: Sequence[Preference], scores: Sequence[Sequence[float]]) -> tuple[list[Hashable], np.ndarray]:
    """Return the image or row of each comparison that is not a tie, and whether it is right."""
    decided = [item for item in _comparisons(rows, scores) if not item[2].is_tie]
    is_right = [row_scores[c.better] > row_scores[c.worse] + SCORE_TOLERANCE for _, row_scores, c in decided]
    return [image_or_row(row) for row, _, _ in decided], np.array(is_right, dtype=bool)


def image_or_row(row: Preference | AnswerGroup) -> Hashable:
    """Return a row's unit of dependence: the image shared with other rows, or the row itself."""
    return row.images or row.id


def _comparisons(
    rows: Sequence[Preference], scores: Sequence[Sequence[float]]
) -> list[tuple[Preference, Sequence[float], Comparison]]:
    return [(row, row_scores, comparison) for row, row_scores in zip(rows, scores, strict=True) for comparison in row.comparisons]


def compute_metrics(rows: Sequence[Preference], scores: Sequence[Sequence[float]], temperature: float) -> dict[str, Any]:
    """Return accuracy by group, and calibration at the model's temperature and at the best one."""
    comparisons = [
        (row, row_scores[comparison.better] - row_scores[comparison.worse], comparison)
        for row, row_scores, comparison in _comparisons(rows, scores)
    ]
    decided = [(row, margin, comparison) for row, margin, comparison in comparisons if not comparison.is_tie]
    margins = np.array([margin for _, margin, _ in decided])
    clusters = [image_or_row(row) for row, _, _ in decided]

    def accuracy_by(group_name: Callable[[Preference, Comparison], str]) -> dict[str, Any]:
        indices: dict[str, list[int]] = {}
        for index, (row, _, comparison) in enumerate(decided):
            indices.setdefault(group_name(row, comparison), []).append(index)
        return {
            name: proportion(margins[in_group] > SCORE_TOLERANCE, [clusters[i] for i in in_group])
            for name, in_group in sorted(indices.items())
        }

    tie_gaps = [abs(margin) for _, margin, comparison in comparisons if comparison.is_tie]
    bins = preference_bins(margins, temperature)
    return {
        "accuracy": proportion(margins > SCORE_TOLERANCE, clusters),
        "by_source": accuracy_by(lambda row, _: row.source or "unknown"),
        "by_hallucinated": accuracy_by(_hallucination_label),
        "by_length": accuracy_by(
            lambda row, comparison: length_bin(row.answers[comparison.better], row.answers[comparison.worse])
        ),
        "ties": _tie_metrics(np.array(tie_gaps), np.abs(margins)),
        "calibration": {
            "temperature": temperature,
            "best_temperature": fit_temperature(margins),
            "ece": expected_calibration_error(bins),
            "ece_uncalibrated": expected_calibration_error(preference_bins(margins, 1.0)),
            "bins": [asdict(bin_) for bin_ in bins],
        },
    }


def _hallucination_label(row: Preference, comparison: Comparison) -> str:
    # A row's flag describes only its worst answer, which is the last one.
    is_about_worst = comparison.worse == len(row.answers) - 1
    return {True: "yes", False: "no", None: "unknown"}[row.hallucinated if is_about_worst else None]


def length_bin(better: str, worse: str) -> str:
    """Return the length bin of a comparison: how much longer, in words, the better answer is."""
    num_better, num_worse = count_words(better), count_words(worse)
    gap = (num_better - num_worse) / max(num_better, num_worse, 1)
    names = ("1 much shorter", "2 shorter", "3 as long", "4 longer", "5 much longer")
    return names[int(np.searchsorted(LENGTH_GAP_EDGES, gap))]


def _tie_metrics(tie_gaps: np.ndarray, other_gaps: np.ndarray) -> dict[str, float] | None:
    """Return how well score gaps separate ties from other pairs: AUROC is 1 if ties are closer."""
    if not len(tie_gaps) or not len(other_gaps):
        return None
    # Mann-Whitney: the rank sum of the other gaps, less its minimum, over the number of pairs.
    rank_sum = rankdata(np.concatenate([other_gaps, tie_gaps]))[: len(other_gaps)].sum()
    auroc = (rank_sum - len(other_gaps) * (len(other_gaps) + 1) / 2) / (len(other_gaps) * len(tie_gaps))
    return {
        "n": len(tie_gaps),
        "mean_gap": float(tie_gaps.mean()),
        "mean_gap_of_others": float(other_gaps.mean()),
        "auroc": float(auroc),
    }


def probe_metrics(probes: Sequence[Probe], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return, by kind of claim, how an injected claim changes the score.

    `false_lowers` and `true_lowers` are how often a false or a true claim lowers the score, and
    `false_below_true` is how often the false one scores below the true one.
    """
    metrics: dict[str, Any] = {}
    for kind in PROBE_KINDS:
        kind_scores = [probe_scores for probe_scores, probe in zip(scores, probes, strict=True) if probe.kind == kind]
        if not kind_scores:
            continue
        original, false_scores, true_scores = np.array(kind_scores).T
        clusters = [image_or_row(probe.group) for probe in probes if probe.kind == kind]
        metrics[kind] = {
            "false_lowers": proportion(false_scores < original, clusters),
            "true_lowers": proportion(true_scores < original, clusters),
            "false_below_true": proportion(false_scores < true_scores, clusters),
        }
    return metrics
