"""Two results on the same examples: metric differences with intervals, categories, and answers that
changed between right and wrong."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, first_valid
from mmrlhf.evaluation.results import Result, open_result
from mmrlhf.metrics.intervals import SufficientStats, mcnemar, paired_bootstrap, unflatten
from mmrlhf.records import Example

MAX_FLIPPED = 8
"""Flipped examples to show, in each direction."""


def compare_pair(a: Result, b: Result, benchmark: Benchmark, ids: set[str], seed: int) -> dict[str, Any]:
    """Compare b with a on these examples: metrics by mode, McNemar's test, categories, flipped
    examples.

    A question that several examples ask, as POPE's splits do, counts once in the last three, with
    the first of its answers.
    """
    task_a, rows_a = open_result(a, benchmark, ids)
    task_b, rows_b = open_result(b, benchmark, ids)
    stats_by_mode_b = benchmark.aggregate(rows_b, task_b)
    metrics = {}
    for mode, stats_a in benchmark.aggregate(rows_a, task_a).items():
        stats_b = stats_by_mode_b.get(mode)
        if isinstance(stats_a, SufficientStats) and isinstance(stats_b, SufficientStats):
            metrics[mode] = unflatten(paired_bootstrap(stats_a, stats_b, seed))
    right_a, right_b = _right_by_id(rows_a), _right_by_id(rows_b)
    answered_ids = [id_ for id_ in task_a.examples if id_ in right_a and id_ in right_b]
    shared_ids = _first_of_each_question(task_a, answered_ids)
    only_a = [id_ for id_ in shared_ids if right_a[id_] and not right_b[id_]]
    only_b = [id_ for id_ in shared_ids if right_b[id_] and not right_a[id_]]
    mcnemar_test = {
        "only_a": len(only_a),
        "only_b": len(only_b),
        "both": sum(right_a[id_] and right_b[id_] for id_ in shared_ids),
        "p": mcnemar(len(only_a), len(only_b)),
        "questions": len(shared_ids),
        "repeated": len(answered_ids) - len(shared_ids),
    }
    by_id_a = {row["id"]: row for row in first_valid(rows_a)}
    by_id_b = {row["id"]: row for row in first_valid(rows_b)}
    flipped = [(False, id_) for id_ in only_a[:MAX_FLIPPED]] + [(True, id_) for id_ in only_b[:MAX_FLIPPED]]
    return {
        "metrics": metrics,
        "mcnemar": mcnemar_test if shared_ids else None,
        "categories": _compare_categories(benchmark, task_a, right_a, right_b, answered_ids, seed),
        "flipped": [
            _flipped_example(benchmark, task_a.examples[id_], by_id_a[id_], by_id_b[id_], task_a, improved)
            for improved, id_ in flipped
        ],
    }


def _first_of_each_question(task: Task, ids: list[str]) -> list[str]:
    """Return the first of the examples that ask the same question about the same image."""
    first_ids: dict[Hashable, str] = {}
    for id_ in ids:
        example = task.examples[id_]
        image = str(example.meta.get("image", ""))
        is_known = bool(example.prompt and (example.images or image))
        question: Hashable = (example.images, image, example.prompt) if is_known else id_
        first_ids.setdefault(question, id_)
    return list(first_ids.values())


def is_right(row: Mapping[str, Any]) -> bool | None:
    """Return whether an answer is right as a whole, None if its row does not contain this.

    A row has `right`, or `said` and `label` (or `truth`), which are compared.
    """
    if isinstance(row.get("right"), bool):
        return bool(row["right"])
    truth = row.get("label", row.get("truth"))
    if "said" not in row or not isinstance(truth, str):
        return None
    verdicts = row["said"] if isinstance(row["said"], list) else [row["said"]]
    return all(verdict == truth for verdict in verdicts)


def _right_by_id(rows: list[ScoreRow]) -> dict[str, bool]:
    right_by_id = {row["id"]: is_right(row) for row in first_valid(rows)}
    return {id_: right for id_, right in right_by_id.items() if right is not None}


def _compare_categories(
    benchmark: Benchmark,
    task: Task,
    right_a: Mapping[str, bool],
    right_b: Mapping[str, bool],
    answered_ids: list[str],
    seed: int,
) -> list[dict[str, Any]]:
    """Return accuracies by category, with their paired difference."""
    ids_by_category: dict[str, list[str]] = {}
    for id_ in answered_ids:
        for category in benchmark.categories(task.examples[id_]):
            ids_by_category.setdefault(category, []).append(id_)
    table_rows = []
    for category, category_ids in sorted(ids_by_category.items()):
        ids = _first_of_each_question(task, category_ids)
        clusters = [task.examples[id_].meta.get("image", id_) for id_ in ids]
        stats_a, stats_b = (
            SufficientStats(clusters, np.array([[right[id_], 1] for id_ in ids]), _accuracy) for right in (right_a, right_b)
        )
        comparison = paired_bootstrap(stats_a, stats_b, seed)["right"]
        table_rows.append({"name": category, "n": len(ids), **(comparison or {})})
    return table_rows


def _accuracy(sums: np.ndarray) -> dict[str, np.ndarray]:
    return {"right": sums[..., 0] / sums[..., 1]}


def _flipped_example(
    benchmark: Benchmark, example: Example, row_a: ScoreRow, row_b: ScoreRow, task: Task, improved: bool
) -> dict[str, Any]:
    """Return the report's entry for an example that only one of the results has right."""
    truth = row_a.get("label", row_a.get("truth"))
    return {
        "id": example.id,
        "better": improved,
        "asked": example.prompt[-1].content if example.prompt else "",
        "truth": truth if isinstance(truth, str) else None,
        "image": example.images[0].path if example.images else None,
        "answers": [
            {
                "text": str(row["answers"][0]),
                "false": sorted([start, end] for start, end in benchmark.false_spans(example, row, task)),
            }
            for row in (row_a, row_b)
        ],
    }
