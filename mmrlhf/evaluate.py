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
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.answer_files import read_predictions
from mmrlhf.asking import AnswerCache, ModelCache, open_predictions, prompt_key, require_images
from mmrlhf.benchmark import Prediction, Task, benchmark_metadata, data_hashes, load_benchmark, parse_options
from mmrlhf.config import EvalConfig
from mmrlhf.endpoint import is_url
from mmrlhf.files import refuse_unwritable, write_atomic
from mmrlhf.growing import file_signature
from mmrlhf.intervals import SufficientStats, unflatten, with_intervals
from mmrlhf.judges import collect_judgments
from mmrlhf.lines import json_line, read_jsonl, to_jsonable
from mmrlhf.records import Example, InputError
from mmrlhf.settings import load_config
from mmrlhf.suites import EvalRun, expand_runs, make_suite

GENERATION_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_new_tokens",
    "stop",
    "num_generations",
    "response_length",
    "seed",
    "dtype",
)
"""Settings that answers depend on."""
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
        raise InputError(f"--judgments {config.recorded_judgments}: {benchmark} asks no judge: leave it out")
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


def collect_predictions(
    name: str,
    version: str,
    module: ModuleType,
    task: Task,
    config: EvalConfig,
    hashes: Mapping[str, str],
    model_cache: ModelCache | None,
) -> tuple[list[Prediction], dict[str, Any]]:
    """The answers in their order, and where they come from. They are in predictions.jsonl afterwards."""
    folder = Path(config.output_dir)
    predictions_path = folder / "predictions.jsonl"
    subject: list[Any] = [name, version, dict(hashes)]
    if config.answers is not None:
        predictions, format_ = read_predictions(config.answers, module, task, config.format)
        source: dict[str, Any] = {
            "answers": {"path": config.answers, "format": format_},
            "model": config.model_name_or_path,
            "adapters": [],
            "generation": None,  # a file does not say how its answers came about
            "template_sha256": None,
        }
        claim_output_dir(folder, [*subject, file_signature(config.answers)])
        write_atomic(predictions_path, "".join(json_line({"id": g.id, "answers": g.answers}) for g in predictions))
        return predictions, source
    if config.reward_model_path is not None:
        if not hasattr(module, "pairs"):
            raise InputError(f"{name} is no benchmark of reward models: give --model DIR")
        if config.model_name_or_path is not None:
            raise InputError("--model and --reward_model_path were both given: give one")
    elif config.model_name_or_path is None:
        raise InputError("there is nothing to measure: give --model DIR, or --answers FILE to score answers that exist")
    settings = {key: getattr(config, key) for key in GENERATION_SETTINGS}
    subject += [file_signature(config.model_name_or_path), file_signature(config.adapter_path), settings]
    subject += (
        [file_signature(config.reward_model_path)]
        if config.reward_model_path
        else [config.served_model]
        if config.served_model
        else []
    )
    _check_same_subject(folder, subject)
    rows = [r for r in (read_jsonl(predictions_path) if predictions_path.exists() else []) if r["id"] in task.examples]
    prompt_keys = {id_: prompt_key(e) for id_, e in task.examples.items()}
    if changed_ids := [r["id"] for r in rows if r.get("key") != prompt_keys[r["id"]]]:
        raise InputError(
            f"{folder} holds answers to other prompts ({changed_ids[0]} and {len(changed_ids) - 1} more): give another --out"
        )
    answers = {r["id"]: r["answers"] for r in rows}
    missing = [e for e in task.examples.values() if e.id not in answers]
    model_info_path = folder / "model.json"
    if promptless_id := next((e.id for e in missing if not e.prompt), None):
        raise InputError(
            f"benchmark {name}: its data does not say how {promptless_id} is asked: add the file of its queries to --data"
        )
    require_images(missing)
    cache, cached_answers, is_sampled = None, {}, config.temperature > 0
    if config.answer_cache_dir and config.model_name_or_path and not is_url(config.model_name_or_path):
        cache = AnswerCache(config.answer_cache_dir, subject[3:])
        cached_answers = {e.id: hit for e in missing if (hit := cache.get(e, is_sampled)) is not None}
        answers, missing = answers | cached_answers, [e for e in missing if e.id not in cached_answers]

    def prediction_line(id_: str) -> str:
        return json_line({"id": id_, "answers": answers[id_], "key": prompt_keys[id_]})

    if missing:
        with open_predictions(module, task, missing, config, name, len(answers), model_cache) as (answer_stream, model_info):
            first_answers = list(islice(answer_stream, 1))  # nothing is written before model and pictures have proved usable
            answer_stream = chain(first_answers, answer_stream)
            claim_output_dir(folder, subject)
            write_atomic(model_info_path, json.dumps(model_info))
            write_atomic(predictions_path, "".join(map(prediction_line, answers)))  # without the line that a killed run left torn
            with predictions_path.open("a", encoding="utf-8") as file:
                for example, example_answers in answer_stream:
                    answers[example.id] = example_answers
                    file.write(prediction_line(example.id))
                    file.flush()
                    if cache is not None:
                        cache.add(example, example_answers, is_sampled, model_info)
    else:
        claim_output_dir(folder, subject)
        if cache is not None and cached_answers:
            write_atomic(model_info_path, json.dumps(cache.model_info))
            write_atomic(predictions_path, "".join(map(prediction_line, answers)))
    source = {
        "model": config.model_name_or_path, "adapters": [config.adapter_path] if config.adapter_path else [], "generation": settings,
        **(json.loads(model_info_path.read_text()) if model_info_path.exists() else {}),
    }  # fmt: skip
    return [Prediction(id_, answers.get(id_, [None])) for id_ in task.examples], source


def _check_same_subject(folder: Path, subject: Sequence[Any]) -> None:
    subject_path = folder / "run_key.json"
    if subject_path.exists() and json.loads(subject_path.read_text()) != json.loads(json.dumps(subject)):
        raise InputError(
            f"{folder} holds answers of another benchmark, data, model, adapter or generation setting: give another --out"
        )


def claim_output_dir(folder: Path, subject: Sequence[Any]) -> None:
    """Make the directory, with what its answers are of. Raises InputError when it holds others."""
    _check_same_subject(folder, subject)
    write_atomic(folder / "run_key.json", json.dumps(subject))


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


def score_scenes(
    module: ModuleType, examples: Sequence[Example], predictions: Mapping[str, list[str]], folder: Path | None, seed: int
) -> dict[str, Any]:
    """Figures by split of answers to scenes, for the demo and the studies; rows go to scores.jsonl when a folder is given."""
    task = Task(seed=seed)
    rows = [{"id": e.id, **module.score(e, predictions[e.id], task)} for e in examples]
    if folder is not None:
        write_atomic(folder / "scores.jsonl", "".join(map(json_line, rows)))
    return dict(module.by_split(rows, seed))
