"""Two results on the same examples: differences with intervals, categories, and answers that flipped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmrlhf.evaluation.benchmark import Task
from mmrlhf.evaluation.results import Result, open_result
from mmrlhf.metrics.intervals import SufficientStats, mcnemar, paired_bootstrap, unflatten
from mmrlhf.records import Example

MAX_FLIPPED = 8
"""Flipped examples of each direction that are shown."""


def compare_pair(a: Result, b: Result, ids: set[str], seed: int) -> dict[str, Any]:
    """b against a: metrics by mode, McNemar's test, categories, flipped examples."""
    module, task_a, rows_a = open_result(a, ids)
    _, task_b, rows_b = open_result(b, ids)
    stats_by_mode_a, stats_by_mode_b = module.aggregate(rows_a, task_a), module.aggregate(rows_b, task_b)
    metrics = {}
    for mode, stats_a in stats_by_mode_a.items():
        stats_b = stats_by_mode_b.get(mode)
        if isinstance(stats_a, SufficientStats) and isinstance(stats_b, SufficientStats):
            metrics[mode] = unflatten(paired_bootstrap(stats_a, stats_b, seed))
    right_a, right_b = _right_by_id(rows_a), _right_by_id(rows_b)
    shared_ids = [i for i in task_a.examples if i in right_a and i in right_b]
    only_a_ids, only_b_ids = (
        [i for i in shared_ids if right_a[i] and not right_b[i]],
        [i for i in shared_ids if right_b[i] and not right_a[i]],
    )
    mcnemar_test = {
        "only_a": len(only_a_ids),
        "only_b": len(only_b_ids),
        "both": sum(right_a[i] and right_b[i] for i in shared_ids),
        "p": mcnemar(len(only_a_ids), len(only_b_ids)),
    }
    rows_by_id_a, rows_by_id_b = _rows_by_id(rows_a), _rows_by_id(rows_b)
    return {
        "metrics": metrics,
        "mcnemar": mcnemar_test if shared_ids else None,
        "categories": _compare_categories(module, task_a, right_a, right_b, shared_ids, seed),
        "flipped": [
            _flipped_example(module, task_a.examples[i], rows_by_id_a[i], rows_by_id_b[i], task_a, improved)
            for improved, flipped_ids in ((False, only_a_ids), (True, only_b_ids)) for i in flipped_ids[:MAX_FLIPPED]
        ],
    }  # fmt: skip


def is_right(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is right as a whole: a row's own `right`, or what it `said` against its `label` or `truth`; None where nothing says."""
    if isinstance(row.get("right"), bool):
        return bool(row["right"])
    truth = row.get("label", row.get("truth"))
    if "said" not in row or not isinstance(truth, str):
        return None
    verdicts = row["said"] if isinstance(row["said"], list) else [row["said"]]
    return all(verdict == truth for verdict in verdicts)


def _right_by_id(rows: list[dict[str, Any]]) -> dict[str, bool]:
    right_by_id = {r["id"]: is_right(r) for r in rows if r["status"] == "ok"}
    return {i: v for i, v in right_by_id.items() if v is not None}


def _rows_by_id(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in rows if r["status"] == "ok"}


def _categories_of(module: ModuleType, example: Example) -> list[str]:
    """An example's categories: the benchmark's own, else its part and its label."""
    if hasattr(module, "categories"):
        return list(module.categories(example))
    meta = example.meta
    names = [str(meta[k]) for k in ("part", "category", "kind") if meta.get(k)]
    return names + [f"{k} {meta[k]}" for k in ("label", "truth") if isinstance(meta.get(k), str)]


def _compare_categories(
    module: ModuleType, task: Task, right_a: Mapping[str, bool], right_b: Mapping[str, bool], shared_ids: list[str], seed: int
) -> list[dict[str, Any]]:
    """Shares of right answers by category, with the paired difference."""
    ids_by_category: dict[str, list[str]] = {}
    for i in shared_ids:
        for name in _categories_of(module, task.examples[i]):
            ids_by_category.setdefault(name, []).append(i)
    table_rows = []
    for name, ids in sorted(ids_by_category.items()):
        image_ids = [task.examples[i].meta.get("image", i) for i in ids]
        stats_a, stats_b = (
            SufficientStats(image_ids, np.array([[r[i], 1] for i in ids]), lambda s: {"right": s[..., 0] / s[..., 1]})
            for r in (right_a, right_b)
        )
        table_rows.append({"name": name, "n": len(ids), **(paired_bootstrap(stats_a, stats_b, seed)["right"] or {})})
    return table_rows


def _flipped_example(
    module: ModuleType, example: Example, a: Mapping[str, Any], b: Mapping[str, Any], task: Task, improved: bool
) -> dict[str, Any]:
    truth = a.get("label", a.get("truth"))
    return {
        "id": example.id, "better": improved, "asked": example.prompt[-1].content if example.prompt else "",
        "truth": truth if isinstance(truth, str) else None,
        "image": example.images[0].path if example.images else None,
        "answers": [_mark_false_claims(module, example, row, task) for row in (a, b)],
    }  # fmt: skip


def _mark_false_claims(module: ModuleType, example: Example, row: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """An answer with the claims in it that are false: the benchmark's own `false_spans`, or the words that its row lists as `false`."""
    text = str(row["answers"][0])
    if hasattr(module, "false_spans"):
        spans = list(module.false_spans(example, text, task))
    else:
        source_row = row.get("robust") if isinstance(row.get("robust"), dict) else row
        false_words = [
            w[0] if isinstance(w, list) else w for w in (source_row or {}).get("false", []) if isinstance(w, list | str)
        ]
        spans = [
            m.span() for w in dict.fromkeys(false_words) for m in re.finditer(rf"\b{re.escape(str(w))}(?:e?s)?\b", text, re.I)
        ]
    return {"text": text, "false": sorted([s, e] for s, e in spans)}
