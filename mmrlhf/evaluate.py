"""`mmrlhf eval NAME`: a benchmark as files, predictions.jsonl -> judgments.jsonl -> scores.jsonl + result.json.

Each is made from those before it and continued where it ends; only the first needs a model, and none of the others torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.config import EvalConfig
from mmrlhf.config_loader import load_config
from mmrlhf.evaluation.benchmark import Prediction, Task, benchmark_metadata, data_hashes, load_benchmark, parse_options
from mmrlhf.evaluation.judges import collect_judgments
from mmrlhf.evaluation.predict import ModelCache, collect_predictions, prompt_key
from mmrlhf.evaluation.suites import EvalRun, expand_runs, make_suite
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import json_line, to_jsonable
from mmrlhf.metrics.intervals import SufficientStats, unflatten, with_intervals
from mmrlhf.records import Example, InputError

PACKAGES = ("mmrlhf", "torch", "transformers", "peft", "numpy", "nltk", "spacy")
SCHEMA_VERSION = 1


def evaluate(
    benchmark: str, config: EvalConfig, options: Mapping[str, Any] | None = None, model_cache: ModelCache | None = None
) -> dict[str, Any]:
    """Run a benchmark, or score answers with it, and return what result.json says. What an earlier call has done is not done again.

    options: the benchmark's own (`{"lineage": "a"}`). loaded: where the model is kept for the next call. Raises InputError; when a judge has given
    up, after what it has said and what it has not are in result.json.
    """
    if config.recorded_judgments is not None and not (config.answers or config.model_name_or_path or config.reward_model_path):
        config = replace(config, answers=config.recorded_judgments)  # records of some scripts hold the answers, too
    module = load_benchmark(benchmark)
    meta = benchmark_metadata(module, benchmark)
    if config.recorded_judgments is not None and not hasattr(module, "judge_requests"):
        raise InputError(f"--recorded_judgments {config.recorded_judgments}: {benchmark} asks no judge: leave it out")
    task, hashes = open_task(benchmark, module, config, options or {})
    folder = Path(config.output_dir)
    refuse_unwritable(folder, "output_dir")
    try:
        predictions, source = collect_predictions(benchmark, meta["VERSION"], module, task, config, hashes, model_cache)
        judge_error = None
        if hasattr(module, "judge_requests"):
            replies, judge_error = _judge_answers(module, task, predictions, config)
            task = replace(task, replies=replies)
        rows = score_predictions(module, task, predictions)
        write_atomic(folder / "scores.jsonl", "".join(map(json_line, rows)))
        result = {"benchmark": benchmark, **_build_result(module, meta, task, config, hashes, rows), **source}
        if config.strict:
            if judge_error:
                raise judge_error
            _require_complete(result["counts"])
        write_atomic(folder / "result.json", json.dumps(to_jsonable(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # a library's, not the system's on a file
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{folder} is on a full disk: make room; the same command goes on from what is written") from None
        raise InputError(
            f"{error.filename or folder}: {error.strerror}: correct it or give another --out; the same command goes on from what is written"
        ) from None
    _print_result(result)
    if judge_error:
        raise judge_error
    return result


def evaluate_all(
    benchmarks: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]], output_dir: str, **common: Any
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every benchmark on every model, as a suite has them: settings and options by benchmark (`{"chair": {"data": ..., "lineage": "a"}}`), by model
    (`{"tuned": {"model": ..., "adapter": ...}}`), and of all. Gives results by model and benchmark. Raises InputError."""
    suite = make_suite(benchmarks, models, common)
    return run_all(expand_runs(suite, {"output_dir": output_dir}, {}, lambda values: load_config(EvalConfig, None, values)))


def run_all(runs: Sequence[EvalRun]) -> dict[str, dict[str, dict[str, Any]]]:
    """Planned runs one after another, a model loaded once for those that follow on it; results by model and benchmark."""
    model_cache = ModelCache()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        if len(runs) > 1:
            print(f"{run.benchmark}: {run.config.output_dir}")
        results.setdefault(run.model, {})[run.benchmark] = evaluate(run.benchmark, run.config, run.options, model_cache)
    model_cache.close()
    return results


def open_task(name: str, module: ModuleType, config: EvalConfig, options: Mapping[str, Any]) -> tuple[Task, dict[str, str]]:
    """The task with its examples, and the hashes of its data."""
    task = Task(config.data, config.image_folder, config.answers, parse_options(module, options), config.limit, config.seed)
    try:
        examples: Sequence[Example] = module.load(task)
        hashes = data_hashes(module, task)
    except FileNotFoundError as error:
        raise InputError(f"benchmark {name}: its data {error.filename} does not exist: correct --data") from None
    by_id = {e.id: e for e in examples}
    if len(by_id) < len(examples):
        raise InputError(
            f"benchmark {name}: {len(examples) - len(by_id)} examples share an id with another: load must give each its own"
        )
    known_versions: Mapping[str, str] = getattr(module, "KNOWN", {})
    for file, digest in hashes.items():
        if known_versions and digest not in known_versions:
            versions = ", ".join(dict.fromkeys(known_versions.values()))
            print(f"note: {file} (sha256 {digest[:12]}) is no version that is known; known are {versions}", file=sys.stderr)
    return replace(task, examples=by_id), hashes


# ---- answers ---------------------------------------------------------------------------------------------------------


# ---- judgments -------------------------------------------------------------------------------------------------------


def _judge_answers(
    module: ModuleType, task: Task, predictions: Sequence[Prediction], config: EvalConfig
) -> tuple[dict[str, dict[str, Any]], InputError | None]:
    """Replies to what the benchmark asks a judge, by key, and why it gave up; of an example that is answered twice, about the first answers."""
    answers_by_id: dict[str, list[str]] = {}
    for prediction in predictions:
        if prediction.id in task.examples and prediction.answers and None not in prediction.answers:
            answers_by_id.setdefault(prediction.id, [a for a in prediction.answers if a is not None])
    return collect_judgments(module, task, answers_by_id, config)


# ---- scores ----------------------------------------------------------------------------------------------------------


def score_predictions(module: ModuleType, task: Task, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """A row for each answer in the order they were given: id, status, answers, and what `score` says of those that can be scored.

    status: ok; duplicate (an earlier row answers the same); unknown (no such id); null (no answer).
    """
    rows, seen_ids = [], set()
    for prediction in predictions:
        example = task.examples.get(prediction.id)
        status = (
            "unknown"
            if example is None
            else "null"
            if None in prediction.answers or not prediction.answers
            else "duplicate"
            if prediction.id in seen_ids
            else "ok"
        )
        row: dict[str, Any] = {"id": prediction.id, "status": status, "answers": prediction.answers}
        if example is not None and status in ("ok", "duplicate"):
            row |= module.score(example, prediction.answers, task)
            seen_ids.add(prediction.id)
        rows.append(row)
    return rows


def compute_metrics(module: ModuleType, task: Task, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics by mode with their intervals, nested by part, and the reasons for those that have no value."""
    metrics: dict[str, Any] = {"official": {}, "robust": {}}
    reasons: dict[str, Any] = {"official": {}, "robust": {}}
    for mode, stats in module.aggregate(rows, task).items():
        if isinstance(stats, SufficientStats):
            flat_metrics, flat_reasons = with_intervals(stats, task.seed)
            metrics[mode], reasons[mode] = unflatten(flat_metrics), unflatten(flat_reasons)
        else:
            metrics[mode] = stats
    return metrics, reasons


def _build_result(
    module: ModuleType, meta: Mapping[str, str], task: Task, config: EvalConfig, hashes: Mapping[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    metrics, reasons = compute_metrics(module, task, rows)
    ok_rows = [r for r in rows if r["status"] == "ok"]
    yes_no_answers = [r["said"] for r in ok_rows if r.get("said") in ("yes", "no")]
    texts = [a for r in ok_rows for a in r["answers"]]
    digest = next(iter(hashes.values())) if len(hashes) == 1 else _sha256(json.dumps(sorted(hashes.items()))) if hashes else None
    known_versions: Mapping[str, str] = getattr(module, "KNOWN", {})
    return {
        "schema": SCHEMA_VERSION, "version": meta["VERSION"], "license": meta["LICENSE"], "headline": meta["HEADLINE"],
        "direction": meta["DIRECTION"], "cluster": meta["CLUSTER"],
        "data": task.data, "data_sha256": digest, "files": dict(hashes), "data_version": {f: known_versions.get(h) for f, h in hashes.items()},
        "image_folder": task.image_folder, "limit": task.limit, "seed": task.seed, "options": vars(task.options) if task.options is not None else {},
        "n": len(ok_rows), "examples": len(task.examples), "metrics": metrics, "reasons": reasons, "counts": _count_issues(module, task, rows),
        "yes_ratio": yes_no_answers.count("yes") / len(yes_no_answers) if yes_no_answers else None,
        "mean_length": sum(len(t.split()) for t in texts) / len(texts) if texts else None,
        "prompt_sha256": _sha256(json.dumps(sorted(prompt_key(e) for e in task.examples.values()))),
        "judge": _judge_info(task), "packages": _package_versions(),
    }  # fmt: skip


def _count_issues(module: ModuleType, task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What is wrong with answers. A part of which nothing was answered is not missing: its metrics are null, with that reason."""
    answered_ids = {r["id"] for r in rows if r["status"] == "ok"}
    parts = {task.examples[i].meta.get("part") for i in answered_ids}
    expected_ids = (
        [e.id for e in task.examples.values() if e.meta.get("part") in parts] if getattr(module, "COMPLETE", True) else []
    )
    count_status: Callable[[str], int] = [r["status"] for r in rows].count
    return {
        "missing": sum(i not in answered_ids for i in expected_ids),
        "unknown_ids": count_status("unknown"),
        "duplicate": count_status("duplicate"),
        "null": count_status("null"),
        "unparsed": sum(bool(r.get("unparsed")) for r in rows if r["status"] == "ok"),
        "judge_errors": sum(reply.get("status", "ok") != "ok" for reply in task.replies.values()),
    }


def _require_complete(counts: Mapping[str, int]) -> None:
    labels = {
        "missing": "missing",
        "unknown_ids": "of unknown ids",
        "duplicate": "repeated",
        "null": "null",
        "judge_errors": "not judged",
    }
    problems = [f"{counts[key]} are {label}" for key, label in labels.items() if counts[key]]
    if problems:
        raise InputError(f"--strict: of the answers {', '.join(problems)}: complete and correct them, or leave --strict out")


def _judge_info(task: Task) -> dict[str, Any] | None:
    if not task.replies:
        return None
    names = {
        key: sorted({str(r[key]) for r in task.replies.values() if r.get(key)})
        for key in ("requested", "model", "template_sha256")
    }
    return {"models": names["model"], "requested": names["requested"], "templates": names["template_sha256"]}


def _package_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _print_result(result: Mapping[str, Any]) -> None:
    for mode, metrics in result["metrics"].items():
        top_level = {k: v for k, v in metrics.items() if v is None or "value" in v}
        parts = {k: v for k, v in metrics.items() if k not in top_level}
        for part, values in {**({"": top_level} if top_level else {}), **parts}.items():
            cells = [
                f"{name} none" if v is None else f"{name} {v['value']:.4g} [{v['low']:.4g}, {v['high']:.4g}]"
                for name, v in values.items() if v is None or "value" in v
            ]  # fmt: skip
            print(f"{mode} {part}".rstrip(), "  ".join(cells))
        for reason in dict.fromkeys(_iter_reasons(result["reasons"].get(mode, {}))):
            print(f"{mode}: none where {reason}")
    print(f"answered {result['n']} of {result['examples']}")
    print("counts", "  ".join(f"{k} {v}" for k, v in result["counts"].items()))


def _iter_reasons(reasons: Any) -> Iterator[str]:
    if isinstance(reasons, Mapping):
        for inner in reasons.values():
            yield from _iter_reasons(inner)
    else:
        yield str(reasons)
