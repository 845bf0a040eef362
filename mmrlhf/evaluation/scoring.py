"""Load a benchmark's examples, score answers to them, and compute the metrics. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmrlhf.config import EvalConfig
from mmrlhf.evaluation.benchmark import Benchmark, Prediction, ScoreRow, Task, data_hashes, parse_options
from mmrlhf.metrics.intervals import SufficientStats, unflatten, with_intervals
from mmrlhf.records import InputError


def open_task(benchmark: Benchmark, config: EvalConfig, options: Mapping[str, Any]) -> tuple[Task, dict[str, str]]:
    """Load a benchmark's examples, and return them in its task, with the hashes of its data by file
    name."""
    parsed_options = parse_options(benchmark, options)
    task = Task(config.data, config.image_folder, config.answers, parsed_options, config.limit, config.seed)
    try:
        examples = benchmark.load(task)
        hashes = data_hashes(benchmark, task)
    except FileNotFoundError as error:
        raise InputError(f"benchmark {benchmark.name}: its data {error.filename} does not exist: correct --data") from None
    by_id = {example.id: example for example in examples}
    if len(by_id) < len(examples):
        raise InputError(
            f"benchmark {benchmark.name}: {len(examples) - len(by_id)} examples share an id with another: "
            "load must give each its own"
        )
    _warn_about_unknown_versions(benchmark, hashes)
    return replace(task, examples=by_id), hashes


def _warn_about_unknown_versions(benchmark: Benchmark, hashes: Mapping[str, str]) -> None:
    if not benchmark.known_versions:
        return
    versions = "; ".join(dict.fromkeys(benchmark.known_versions.values()))
    for file, digest in hashes.items():
        if digest not in benchmark.known_versions:
            print(f"note: {file} (sha256 {digest[:12]}) is not a known version; known are {versions}", file=sys.stderr)


# ---- scores --------------------------------------------------------------------------------------


def score_predictions(benchmark: Benchmark, task: Task, predictions: Sequence[Prediction]) -> list[ScoreRow]:
    """Return a row for each prediction, in order: id, status, answers, and what `score` returns if
    it can be scored.

    status: ok; duplicate (an earlier row answers the same example); unknown (no example has this
    id); null (an answer is missing).
    """
    rows, answered_ids = [], set[str]()
    for prediction in predictions:
        status = _status_of(prediction, task, answered_ids)
        row: ScoreRow = {"id": prediction.id, "status": status, "answers": prediction.answers}
        if status in ("ok", "duplicate"):
            answers = [answer for answer in prediction.answers if answer is not None]
            row |= benchmark.score(task.examples[prediction.id], answers, task)
            answered_ids.add(prediction.id)
        rows.append(row)
    return rows


def _status_of(prediction: Prediction, task: Task, answered_ids: set[str]) -> str:
    if prediction.id not in task.examples:
        return "unknown"
    if not prediction.answers or None in prediction.answers:
        return "null"
    return "duplicate" if prediction.id in answered_ids else "ok"


def compute_metrics(benchmark: Benchmark, task: Task, rows: list[ScoreRow]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return metrics by mode with their intervals, nested by part, and the reasons for undefined
    ones, nested in the same way."""
    metrics: dict[str, Any] = {"official": {}, "robust": {}}
    reasons: dict[str, Any] = {"official": {}, "robust": {}}
    for mode, stats in benchmark.aggregate(rows, task).items():
        if isinstance(stats, SufficientStats):
            flat_metrics, flat_reasons = with_intervals(stats, task.seed)
            metrics[mode], reasons[mode] = unflatten(flat_metrics), unflatten(flat_reasons)
        else:
            metrics[mode] = stats
    return metrics, reasons
