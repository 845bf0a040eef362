"""`mmrlhf eval NAME`: run a benchmark, file by file: predictions -> judgments -> scores -> result.

    predictions.jsonl   answers of a model, a server or a reward model, or read from a file
    judgments.jsonl     replies of an LLM judge about them, for benchmarks that ask one
    scores.jsonl        one row for each answer, with everything that determines its score
    result.json         metrics with confidence intervals, and their inputs

Each file is made from those before it, and an interrupted run is continued. Only the first step
needs a model, and the other steps do not import torch.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from mmrlhf.config import EvalConfig
from mmrlhf.config.loader import load_config
from mmrlhf.evaluation.benchmark import (
    Benchmark,
    Prediction,
    ScoreRow,
    Task,
    first_valid,
    load_benchmark,
    text_sha256,
)
from mmrlhf.evaluation.judges import collect_judgments, count_unjudged
from mmrlhf.evaluation.model_cache import ModelCache
from mmrlhf.evaluation.predict import collect_predictions, prompt_key
from mmrlhf.evaluation.scoring import compute_metrics, open_task, score_predictions
from mmrlhf.evaluation.suites import EvalRun, expand_runs, make_suite
from mmrlhf.files import lock
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import json_line, to_jsonable
from mmrlhf.files.writing import is_disk_full, writing
from mmrlhf.records import InputError
from mmrlhf.report.eval_table import print_eval_result
from mmrlhf.text.word_counts import count_words

PACKAGES = ("mmrlhf", "torch", "transformers", "peft", "numpy", "nltk", "spacy")
"""Packages whose versions result.json records."""
SCHEMA_VERSION = 1
"""Version of the layout of result.json."""
STRICT_COUNTS = {
    "missing": "missing",
    "unknown_ids": "with an unknown id",
    "duplicate": "repeated",
    "null": "null",
    "judge_errors": "not judged",
}
"""Counts that --strict requires to be 0, and their names in its message."""


def evaluate(
    benchmark: str,
    config: EvalConfig,
    options: Mapping[str, Any] | None = None,
    model_cache: ModelCache | None = None,
) -> dict[str, Any]:
    """Run a benchmark, or score existing answers with it, and return the contents of result.json.

    benchmark: a name of `eval/`, or a path that ends in .py. options: its own settings
    (`{"lineage": "a"}`). model_cache: keeps the model for the next call. Steps that an earlier call
    finished are not repeated.

    Raises InputError if the data, answers or settings cannot be used, and if the judge gives up;
    then result.json covers the existing judgments.
    """
    if config.recorded_judgments and not (config.answers or config.model_name_or_path or config.reward_model_path):
        # The records of some official scripts hold the answers as well.
        config = replace(config, answers=config.recorded_judgments)
    loaded = load_benchmark(benchmark)
    if config.recorded_judgments is not None and not loaded.uses_judge:
        raise InputError(f"--recorded_judgments {config.recorded_judgments}: {benchmark} does not ask a judge: leave it out")
    task, hashes = open_task(loaded, config, options or {})
    output_dir = Path(config.output_dir)
    refuse_unwritable(output_dir, "output_dir")
    with writing(output_dir), _os_errors_as_input_errors(output_dir):
        lock.acquire(output_dir / ".lock", output_dir, "out")
        predictions, source = collect_predictions(loaded, task, config, hashes, model_cache)
        task, judge_error = judge_predictions(loaded, task, predictions, config)
        rows = score_predictions(loaded, task, predictions)
        lock.check(output_dir / ".lock", output_dir, "out")
        if config.answers is None and not first_valid(rows):
            raise InputError("no example was answered, and the notes above say why: correct that, and run the same command again")
        write_atomic(output_dir / "scores.jsonl", "".join(map(json_line, rows)))
        result = build_result(loaded, task, rows, hashes) | source
        if config.answers is not None:
            result["answers"]["notes"] += _count_notes(loaded, result["n"], result["counts"])
        if config.strict:
            if judge_error:
                raise judge_error
            _require_complete(result["counts"] | {"judge_errors": count_unjudged(loaded, task, rows)})
        text = json.dumps(to_jsonable(result), indent=1, ensure_ascii=False)
        write_atomic(output_dir / "result.json", text + "\n")
    print_eval_result(result)
    print(f"wrote {output_dir / 'result.json'}; answers and their scores are next to it")
    if judge_error:
        raise judge_error
    return result


def evaluate_all(
    benchmarks: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    output_dir: str,
    **common: Any,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Run every benchmark on every model, like a suite file, and return results by model and
    benchmark.

    benchmarks: settings and options by benchmark (`{"chair": {"data": ..., "lineage": "a"}}`).
    models: settings by model (`{"tuned": {"model": ..., "adapter": ...}}`). common: settings of
    all. Raises InputError.
    """
    suite = make_suite(benchmarks, models, common)
    runs = expand_runs(suite, {"output_dir": output_dir}, {}, lambda values: load_config(EvalConfig, None, values))
    return run_all(runs)


def run_all(runs: Sequence[EvalRun]) -> dict[str, dict[str, dict[str, Any]]]:
    """Run a list of evaluations and return results by model and benchmark.

    Consecutive runs of one model load it once.
    """
    model_cache = ModelCache()
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        if len(runs) > 1:
            print(f"{run.benchmark}: {run.config.output_dir}")
        results.setdefault(run.model, {})[run.benchmark] = evaluate(run.benchmark, run.config, run.options, model_cache)
    model_cache.close()
    return results


# ---- judgments -----------------------------------------------------------------------------------


def judge_predictions(
    benchmark: Benchmark, task: Task, predictions: Sequence[Prediction], config: EvalConfig
) -> tuple[Task, InputError | None]:
    """Return the task with the judge's replies, and the error at which the judge gave up, if any.

    If an example is answered twice, the judge reads its first answers only.
    """
    if not benchmark.uses_judge:
        return task, None
    answers_by_id: dict[str, list[str]] = {}
    for prediction in predictions:
        answers = [answer for answer in prediction.answers if answer is not None]
        if prediction.id in task.examples and answers and len(answers) == len(prediction.answers):
            answers_by_id.setdefault(prediction.id, answers)
    replies, judge_error = collect_judgments(benchmark, task, answers_by_id, config)
    return replace(task, replies=replies), judge_error


# ---- the result ----------------------------------------------------------------------------------


def build_result(benchmark: Benchmark, task: Task, rows: list[ScoreRow], hashes: Mapping[str, str]) -> dict[str, Any]:
    """Return the contents of result.json, apart from the origin of the answers."""
    metrics, reasons = compute_metrics(benchmark, task, rows)
    valid_rows = first_valid(rows)
    verdicts = [row["said"] for row in valid_rows if row.get("said") in ("yes", "no")]
    lengths = [count_words(answer) for row in valid_rows for answer in row["answers"]]
    return {
        "benchmark": benchmark.name,
        "schema": SCHEMA_VERSION,
        "version": benchmark.version,
        "license": benchmark.license,
        "headline": benchmark.headline,
        "direction": benchmark.direction,
        "cluster": benchmark.cluster,
        "data": task.data,
        "data_sha256": _combined_hash(hashes),
        "files": dict(hashes),
        "data_version": {file: benchmark.known_versions.get(digest) for file, digest in hashes.items()},
        "image_folder": task.image_folder,
        "limit": task.limit,
        "seed": task.seed,
        "options": vars(task.options) if task.options is not None else {},
        "n": len(valid_rows),
        "examples": len(task.examples),
        "metrics": metrics,
        "reasons": reasons,
        "counts": count_issues(benchmark, task, rows),
        "yes_ratio": verdicts.count("yes") / len(verdicts) if verdicts else None,
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "prompt_sha256": text_sha256(json.dumps(sorted(map(prompt_key, task.examples.values())))),
        "judge": _judge_info(task),
        "packages": _package_versions(),
    }


def count_issues(benchmark: Benchmark, task: Task, rows: Sequence[ScoreRow]) -> dict[str, int]:
    """Count the problems of the answers.

    An example is missing only if another example of its part is answered: a part without answers
    has null metrics, with that reason.
    """
    valid_rows = first_valid(rows)
    answered_ids = {row["id"] for row in valid_rows}
    answered_parts = {task.examples[id_].meta.get("part") for id_ in answered_ids}
    num_missing = 0
    if benchmark.requires_all_answers:
        expected = [e for e in task.examples.values() if e.meta.get("part") in answered_parts]
        num_missing = sum(example.id not in answered_ids for example in expected)
    statuses = Counter(row["status"] for row in rows)
    return {
        "missing": num_missing,
        "unknown_ids": statuses["unknown"],
        "duplicate": statuses["duplicate"],
        "null": statuses["null"],
        "unparsed": sum(bool(row.get("unparsed")) for row in valid_rows),
        "judge_errors": sum(reply.get("status", "ok") != "ok" for reply in task.replies.values()),
    }


def _count_notes(benchmark: Benchmark, num_answered: int, counts: Mapping[str, int]) -> list[str]:
    """Print and return notes on the effects of the counts."""
    what_counts = "all of its answers count" if benchmark.counts_repeated else "robust metrics take its first answer"
    sentences = {
        "unknown_ids": "{n} answers have ids that --data lacks; robust metrics ignore them",
        "duplicate": f"{{n}} answers are to a question that an earlier row answers; {what_counts}",
        "null": "{n} answers are null; robust metrics ignore them",
        "missing": f"the answers cover {num_answered} of {num_answered + counts['missing']} questions; robust metrics cover these",
    }
    notes = [text.format(n=counts[name]) for name, text in sentences.items() if counts[name]]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return notes


def _require_complete(counts: Mapping[str, int]) -> None:
    problems = [f"{counts[key]} {label}" for key, label in STRICT_COUNTS.items() if counts[key]]
    if problems:
        raise InputError(
            f"--strict refuses these answers: {', '.join(problems)}: complete and correct them, or leave --strict out"
        )


def _combined_hash(hashes: Mapping[str, str]) -> str | None:
    """Return the hash of the one data file, or a hash of all hashes; None without data files."""
    if not hashes:
        return None
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return text_sha256(json.dumps(sorted(hashes.items())))


def _judge_info(task: Task) -> dict[str, Any] | None:
    """Return the judges' models, the requested ones, and the hashes of the prompt templates; None
    without replies."""
    if not task.replies:
        return None
    keys = {"models": "model", "requested": "requested", "templates": "template_sha256"}
    replies = task.replies.values()
    return {name: sorted({str(reply[key]) for reply in replies if reply.get(key)}) for name, key in keys.items()}


def _package_versions() -> dict[str, str]:
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


# ---- messages ------------------------------------------------------------------------------------


@contextmanager
def _os_errors_as_input_errors(output_dir: Path) -> Iterator[None]:
    """Turn the operating system's errors on files (permissions) into InputErrors with advice.
    `writing` does so for a full disk."""
    try:
        yield
    except OSError as error:
        # Libraries raise their own OSErrors without an errno, and failed connections raise ones
        # that are not about files.
        if error.errno is None or isinstance(error, ConnectionError) or is_disk_full(error):
            raise
        raise InputError(
            f"{error.filename or output_dir}: {error.strerror}: correct it or give another --out; "
            "the same command continues from what is written"
        ) from None
