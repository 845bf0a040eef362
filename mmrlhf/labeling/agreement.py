"""Agreement of annotators, and each annotator's sides, gold questions and times.

Krippendorff's alpha (Content Analysis, 4th ed. 2018, chapter 12) is 1 for perfect agreement and 0
for chance agreement; the package `krippendorff` computes it.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import krippendorff
import numpy as np

from mmrlhf.labeling.results import Label, Labels, claim_key, sees_error, signed_strength
from mmrlhf.labeling.tasks import Mode
from mmrlhf.metrics.intervals import wilson

Interval = tuple[float, float]
NUM_RESAMPLES = 500
MIN_SIDE_LABELS = 20
"""Minimum number of decided pairs for reporting an annotator's side bias."""

Unit = tuple[int, Any]
"""A task, and the judged part of it."""


@dataclass(frozen=True)
class Agreement:
    """Alpha of one kind of judgement with its 95% interval; None where it is not defined."""

    name: str
    level: str
    alpha: float | None
    interval: Interval | None
    num_tasks: int
    """Tasks that two annotators or more have judged."""


@dataclass(frozen=True)
class Speed:
    """The median duration of a label in seconds, and labels per hour of work."""

    median_seconds: float
    per_hour: float


@dataclass(frozen=True)
class AnnotatorSummary:
    """One annotator: counts, speed by mode, how many of the decided pairs went to the answer on the
    left (shown as A), how often each shown position (A, B, ...) came first in rankings, and right
    gold questions. Answers that share the first place have equal parts of it."""

    name: str
    num_labels: int
    num_skips: int
    num_flags: int
    speeds: Mapping[Mode, Speed]
    num_left: int
    num_decided: int
    first_places: Sequence[float]
    num_gold_right: int
    num_gold: int

    @property
    def left_interval(self) -> Interval:
        return wilson(self.num_left, self.num_decided)

    @property
    def gold_interval(self) -> Interval:
        return wilson(self.num_gold_right, self.num_gold)


# ---- agreement -----------------------------------------------------------------------------------


def agreements(labels: Labels) -> list[Agreement]:
    """Return the agreement of annotators on each kind of judgement that occurs.

    Intervals are percentiles over resampled tasks.
    """
    by_mode: dict[str, list[Label]] = defaultdict(list)
    for label in labels.labels:
        if not label.task.gold:
            by_mode[label.task.mode].append(label)
    kinds: list[tuple[str, str, Literal["nominal", "ordinal"], Callable[[Label], Iterable[tuple[Any, float]]]]] = [
        ("pairwise", "pairs: one, the other, tie or both bad", "nominal", _choice),
        (
            "pairwise",
            "pairs: how much better one is",
            "ordinal",
            lambda label: [("", _direction(label, 0, 1) * signed_strength(label))],
        ),
        ("ranking", "rankings: each two of their answers", "nominal", _comparisons),
        ("claims", "claims: verdicts", "nominal", _verdicts),
        ("claims", "answers: whether any word is wrong", "nominal", lambda label: [("", float(sees_error(label)))]),
        ("facts", "facts: whether the list is complete", "nominal", lambda label: [("", float(label.content["complete"]))]),
    ]
    results = []
    for mode, name, level, values in kinds:
        if by_mode[mode]:
            judged: dict[Unit, list[float]] = defaultdict(list)
            for label in by_mode[mode]:
                for key, value in values(label):
                    judged[label.task_id, key].append(value)
            results.append(_agreement(name, level, judged))
    if by_mode["facts"]:
        results.append(_agreement_on_facts(by_mode["facts"]))
    return results


def _direction(label: Label, i: int, j: int) -> int:
    """Return 1 or -1 for two answers, depending only on their texts.

    Rows often have the better answer first. Then nearly all labels would say "first", which chance
    alone would explain.
    """
    first, second = (hashlib.sha256(f"{label.task.name} {label.task.answers[index]}".encode()).digest() for index in (i, j))
    return 1 if first < second else -1


def _choice(label: Label) -> list[tuple[Any, float]]:
    return [("", 3.0 if label.content.get("both_bad") else float(_direction(label, 0, 1) * np.sign(signed_strength(label))))]


def _comparisons(label: Label) -> list[tuple[Any, float]]:
    ranks = label.content["ranks"]
    return [
        ((i, j), float(_direction(label, i, j) * np.sign(ranks[j] - ranks[i])))
        for i, j in itertools.combinations(range(len(ranks)), 2)
    ]


def _verdicts(label: Label) -> list[tuple[Any, float]]:
    numbers = {"contradicted": 0.0, "supported": 1.0, "unknown": 2.0}
    return [(claim_key(claim), numbers[claim["verdict"]]) for claim in label.content["claims"]]


def _agreement(name: str, level: Literal["nominal", "ordinal"], judged: Mapping[Unit, Sequence[float]]) -> Agreement:
    judged = {unit: values for unit, values in judged.items() if len(values) > 1}
    tasks = sorted({task for task, _ in judged})
    domain = sorted({value for values in judged.values() for value in values})
    counts_by_task: dict[int, list[list[int]]] = defaultdict(list)
    for (task, _), values in judged.items():
        counts = Counter(values)
        counts_by_task[task].append([counts[value] for value in domain])
    blocks = [np.array(counts_by_task[task]) for task in tasks]

    def alpha_of(draw: Iterable[int]) -> float | None:
        return _alpha([blocks[i] for i in draw], domain, level)

    alpha = alpha_of(range(len(tasks)))
    interval = None if alpha is None else _interval(alpha_of, len(tasks))
    return Agreement(name, level, alpha, interval, len(tasks))


def _interval(alpha_of: Callable[[np.ndarray], float | None], num_tasks: int) -> Interval | None:
    """Return percentiles of alpha over resampled tasks, None if there is one task only."""
    if num_tasks < 2:
        return None
    rng = np.random.default_rng([0, 61])
    alphas = (alpha_of(rng.integers(num_tasks, size=num_tasks)) for _ in range(NUM_RESAMPLES))
    low, high = np.percentile([alpha for alpha in alphas if alpha is not None], [2.5, 97.5])
    return float(low), float(high)


def _alpha(blocks: Sequence[np.ndarray], domain: Sequence[float], level: Literal["nominal", "ordinal"]) -> float | None:
    """Return alpha of counts [units, values], None without two annotators or two values."""
    if not blocks or len(domain) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a draw may have one value only
        alpha = krippendorff.alpha(value_counts=np.concatenate(blocks), value_domain=np.array(domain), level_of_measurement=level)
    return float(alpha) if math.isfinite(alpha) else None


def _agreement_on_facts(labels: Sequence[Label]) -> Agreement:
    """Return alpha of the lists of facts, with the distance 1 - F1 of two lists (Dice).

    A whole list is one judgement, as in Passonneau (Measuring agreement on set-valued items, LREC
    2006). With single facts as units, facts that everybody left out would be missing, and alpha
    would be below 0 for annotators who share most of their facts.
    """
    lists_by_task: dict[int, list[frozenset[tuple[str, str]]]] = defaultdict(list)
    for label in labels:
        lists_by_task[label.task_id].append(frozenset((fact["kind"], fact["text"]) for fact in label.content["facts"]))
    groups = [lists for _, lists in sorted(lists_by_task.items()) if len(lists) > 1]
    counts_N = np.array([len(lists) for lists in groups])
    observed_N = np.array(
        [sum(1 - _f1(a, b) for a, b in itertools.permutations(lists, 2)) / (len(lists) - 1) for lists in groups]
    )
    # The F1 of all pairs of lists needs no loop over pairs: lists of equal length share a
    # denominator, so the counts of each fact F by length L suffice.
    lengths = sorted({len(facts) for lists in groups for facts in lists})
    column_of = {fact: column for column, fact in enumerate(sorted({f for lists in groups for facts in lists for f in facts}))}
    f1_LL = 2 / np.add.outer(lengths, lengths)
    entries = [
        (task, lengths.index(len(facts)) * len(column_of) + column_of[fact])
        for task, lists in enumerate(groups) for facts in lists for fact in facts
    ]  # fmt: skip
    task_of, cell_of = np.array(entries).reshape(-1, 2).T

    def alpha_of(draw: np.ndarray) -> float | None:
        weights_N = np.bincount(draw, minlength=len(groups))
        num = weights_N @ counts_N
        cells = np.bincount(cell_of, weights_N[task_of], minlength=len(lengths) * len(column_of))
        counts_LF = cells.reshape(len(lengths), len(column_of))
        distance = num**2 - (f1_LL * (counts_LF @ counts_LF.T)).sum()  # of all lists from one another
        return None if distance < 1e-9 * num**2 else float(1 - (num - 1) * (weights_N @ observed_N) / distance)

    alpha = alpha_of(np.arange(len(groups))) if groups else None
    interval = None if alpha is None else _interval(alpha_of, len(groups))
    return Agreement("facts: lists of facts, by the F1 of two", "set", alpha, interval, len(groups))


def _f1(first: frozenset[Any], second: frozenset[Any]) -> float:
    return 2 * len(first & second) / (len(first) + len(second))


# ---- annotators ----------------------------------------------------------------------------------


def summarise_annotators(labels: Labels) -> list[AnnotatorSummary]:
    """Return a summary of each annotator, in the order of their names."""
    summaries = []
    for annotator, name in labels.names.items():
        own = [label for label in labels.labels if label.annotator == annotator]
        kinds = Counter(event.kind for event in labels.others if event.annotator == annotator)
        decided = [label for label in own if label.task.mode == "pairwise" and signed_strength(label)]
        left = sum(label.content["ranks"][label.order[0]] == 1 for label in decided)
        gold = [is_right(label) for label in own if label.task.gold]
        summary = AnnotatorSummary(
            name,
            len(own),
            kinds["skip"],
            kinds["flag"],
            _speeds(own),
            left,
            len(decided),
            _first_places([label for label in own if label.task.mode == "ranking"]),
            sum(gold),
            len(gold),
        )
        summaries.append(summary)
    return sorted(summaries, key=lambda summary: summary.name)


def _speeds(labels: Sequence[Label]) -> dict[Mode, Speed]:
    """Return the speed in each mode, since a pair takes less time than a list of facts."""
    seconds_by_mode: dict[Mode, list[float]] = defaultdict(list)
    for label in labels:
        if label.seconds is not None:
            seconds_by_mode[label.task.mode].append(label.seconds)
    return {
        mode: Speed(statistics.median(seconds), 3600 * len(seconds) / sum(seconds))
        for mode, seconds in sorted(seconds_by_mode.items())
        if sum(seconds) > 0
    }


def _first_places(rankings: Sequence[Label]) -> list[float]:
    """Return the number of first places of each shown position."""
    places = [0.0] * max((len(label.order) for label in rankings), default=0)
    for label in rankings:
        best = [position for position, index in enumerate(label.order) if label.content["ranks"][index] == 1]
        for position in best:
            places[position] += 1 / len(best)
    return places


def one_sided(summaries: Sequence[AnnotatorSummary]) -> list[AnnotatorSummary]:
    """Return annotators whose share of left answers differs from one half by more than chance.

    Each is tested at 5% divided by their number (Bonferroni), so that by chance alone somebody is
    named in about 5% of labellings, for any number of annotators.
    """
    tested = [summary for summary in summaries if summary.num_decided >= MIN_SIDE_LABELS]
    found = []
    for summary in tested:
        z = statistics.NormalDist().inv_cdf(1 - 0.05 / (2 * len(tested)))
        low, high = wilson(summary.num_left, summary.num_decided, z)
        if not low <= 0.5 <= high:
            found.append(summary)
    return found


def is_right(label: Label) -> bool:
    """Return whether a label agrees with its gold question.

    Compared answers: on each pair. Claims: each wrong passage must be marked somewhere, and every
    mark must touch one; a correction without marks only shows that something is wrong. Facts: all
    of the question's facts are stated, in the same words, and none of its absent ones.
    """
    mode, gold, content = label.task.mode, label.task.gold, label.content
    if mode == "claims":
        known, marks = gold["spans"], [(mark["start"], mark["end"]) for mark in content["spans"]]
        if not marks:
            return sees_error(label) == bool(known)
        return all(_touches(span, marks) for span in known) and all(_touches(mark, known) for mark in marks)
    if mode == "facts":
        stated = {(fact["kind"], fact["text"]) for fact in content["facts"]}
        return all(("object", text) not in stated if kind == "absent" else (kind, text) in stated for kind, text in gold["facts"])
    ranks, known = content["ranks"], gold["ranks"]
    pairs = itertools.combinations(range(len(known)), 2)
    return all(np.sign(ranks[i] - ranks[j]) == np.sign(known[i] - known[j]) for i, j in pairs)


def _touches(span: Sequence[int], others: Iterable[Sequence[int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)
