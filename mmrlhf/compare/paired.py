"""Two results on the same examples: differences with intervals, categories, and answers that flipped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from mmrlhf.benchmark import Task
from mmrlhf.compare.runs import Result, opened
from mmrlhf.intervals import Counted, mcnemar, nested, paired
from mmrlhf.records import Example

SHOWN = 8
"""Flipped examples of each direction that are shown."""


def compared(a: Result, b: Result, ids: set[str], seed: int) -> dict[str, Any]:
    """b against a: metrics by mode, McNemar's test, categories, flipped examples."""
    module, task_a, rows_a = opened(a, ids)
    _, task_b, rows_b = opened(b, ids)
    found_a, found_b = module.aggregate(rows_a, task_a), module.aggregate(rows_b, task_b)
    metrics = {}
    for mode, one in found_a.items():
        other = found_b.get(mode)
        if isinstance(one, Counted) and isinstance(other, Counted):
            metrics[mode] = nested(paired(one, other, seed))
    right_a, right_b = _right(rows_a), _right(rows_b)
    both = [i for i in task_a.examples if i in right_a and i in right_b]
    lost, won = [i for i in both if right_a[i] and not right_b[i]], [i for i in both if right_b[i] and not right_a[i]]
    test = {
        "only_a": len(lost),
        "only_b": len(won),
        "both": sum(right_a[i] and right_b[i] for i in both),
        "p": mcnemar(len(lost), len(won)),
    }
    said_a, said_b = _first(rows_a), _first(rows_b)
    return {
        "metrics": metrics,
        "mcnemar": test if both else None,
        "categories": _categories(module, task_a, right_a, right_b, both, seed),
        "flipped": [
            _flip(module, task_a.examples[i], said_a[i], said_b[i], task_a, better)
            for better, which in ((False, lost), (True, won)) for i in which[:SHOWN]
        ],
    }  # fmt: skip


def right(row: Mapping[str, Any]) -> bool | None:
    """Whether an answer is right as a whole: a row's own `right`, or what it `said` against its `label` or `truth`; None where nothing says."""
    if isinstance(row.get("right"), bool):
        return bool(row["right"])
    truth = row.get("label", row.get("truth"))
    if "said" not in row or not isinstance(truth, str):
        return None
    said = row["said"] if isinstance(row["said"], list) else [row["said"]]
    return all(one == truth for one in said)


def _right(rows: list[dict[str, Any]]) -> dict[str, bool]:
    found = {r["id"]: right(r) for r in rows if r["status"] == "ok"}
    return {i: v for i, v in found.items() if v is not None}


def _first(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["id"]: r for r in rows if r["status"] == "ok"}


def _of(module: ModuleType, example: Example) -> list[str]:
    """An example's categories: the benchmark's own, else its part and its label."""
    if hasattr(module, "categories"):
        return list(module.categories(example))
    meta = example.meta
    named = [str(meta[k]) for k in ("part", "category", "kind") if meta.get(k)]
    return named + [f"{k} {meta[k]}" for k in ("label", "truth") if isinstance(meta.get(k), str)]


def _categories(
    module: ModuleType, task: Task, right_a: Mapping[str, bool], right_b: Mapping[str, bool], both: list[str], seed: int
) -> list[dict[str, Any]]:
    """Shares of right answers by category, with the paired difference."""
    members: dict[str, list[str]] = {}
    for i in both:
        for name in _of(module, task.examples[i]):
            members.setdefault(name, []).append(i)
    found = []
    for name, ids in sorted(members.items()):
        pictures = [task.examples[i].meta.get("image", i) for i in ids]
        one, other = (
            Counted(pictures, np.array([[r[i], 1] for i in ids]), lambda s: {"right": s[..., 0] / s[..., 1]})
            for r in (right_a, right_b)
        )
        found.append({"name": name, "n": len(ids), **(paired(one, other, seed)["right"] or {})})
    return found


def _flip(
    module: ModuleType, example: Example, a: Mapping[str, Any], b: Mapping[str, Any], task: Task, better: bool
) -> dict[str, Any]:
    truth = a.get("label", a.get("truth"))
    return {
        "id": example.id, "better": better, "asked": example.prompt[-1].content if example.prompt else "",
        "truth": truth if isinstance(truth, str) else None,
        "image": example.images[0].path if example.images else None,
        "answers": [_marked(module, example, row, task) for row in (a, b)],
    }  # fmt: skip


def _marked(module: ModuleType, example: Example, row: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """An answer with the claims in it that are false: the benchmark's own `marks`, or the words that its row lists as `false`."""
    text = str(row["answers"][0])
    if hasattr(module, "marks"):
        spans = list(module.marks(example, text, task))
    else:
        inner = row.get("robust") if isinstance(row.get("robust"), dict) else row
        words = [w[0] if isinstance(w, list) else w for w in (inner or {}).get("false", []) if isinstance(w, list | str)]
        spans = [m.span() for w in dict.fromkeys(words) for m in re.finditer(rf"\b{re.escape(str(w))}(?:e?s)?\b", text, re.I)]
    return {"text": text, "false": sorted([s, e] for s, e in spans)}
