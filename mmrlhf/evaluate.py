"""`mmrlhf eval NAME`: a benchmark on a model, as files: predictions.jsonl -> scores.jsonl -> result.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.benchmark import load_benchmark
from mmrlhf.config import EvalConfig
from mmrlhf.files import write_whole
from mmrlhf.generate import policy, sampling
from mmrlhf.growing import state_of
from mmrlhf.records import Example, InputError
from mmrlhf.rollout import answer_all
from mmrlhf.run import Run, json_line, progress, read_jsonl
from mmrlhf.vlm import VLM


def evaluate(benchmark: str, config: EvalConfig) -> dict[str, Any]:
    """Predict, score, aggregate; returns the metrics. Predictions that are there are not made again."""
    module = load_benchmark(benchmark)
    if not isinstance(getattr(module, "VERSION", None), str):
        raise InputError(f'benchmark {benchmark} does not state its VERSION: add VERSION = "1", and raise it when results change')
    run = Run(config.output_dir, config)
    try:
        examples = module.load(config.data, config.limit)
    except FileNotFoundError as error:
        raise InputError(f"benchmark {benchmark}: its data {error.filename} does not exist: correct --data") from None
    subject = json.dumps([benchmark, module.VERSION, state_of(config.model_name_or_path), state_of(config.adapter_path)])
    known = run.path / "subject.json"
    if known.exists() and known.read_text() != subject:
        raise InputError(f"{run.path} holds answers of another benchmark, model or adapter: give another --output_dir")
    kept = run.path / "predictions.jsonl"
    predictions = {row["id"]: row["answers"] for row in (read_jsonl(kept) if kept.exists() else [])}
    missing = [e for e in examples if e.id not in predictions]
    if missing:
        with policy(config.model_name_or_path, config.adapter_path, engine=config) as vlm:
            coming = predict(vlm, missing, config, benchmark)
            coming = chain([next(coming)], coming)  # nothing is written before model and pictures have proved usable
            _begin(run, subject, predictions)
            with kept.open("a") as file:
                for example, answers in coming:
                    predictions[example.id] = answers
                    file.write(json_line({"id": example.id, "answers": answers}))
                    file.flush()
    else:
        _begin(run, subject, predictions)
    metrics = scored(module, examples, predictions, run.path, config.seed)
    result = {"benchmark": benchmark, "version": module.VERSION, "model": config.model_name_or_path, "adapter": config.adapter_path,
              "temperature": config.temperature, "n": len(examples), "metrics": metrics}  # fmt: skip
    write_whole(run.path / "result.json", json.dumps(result, indent=1))
    for part, values in metrics.items():
        shown = {k: v for k, v in values.items() if isinstance(v, float)}
        print(part, "  ".join(f"{k} {v:.4g}" for k, v in shown.items()))
    return metrics


def _begin(run: Run, subject: str, predictions: dict[str, list[str]]) -> None:
    """What the directory's answers are of, and those that are there, without the line that a killed run left torn."""
    run.begin()
    write_whole(run.path / "subject.json", subject)
    write_whole(run.path / "predictions.jsonl", "".join(json_line({"id": i, "answers": a}) for i, a in predictions.items()))


def predict(vlm: VLM, examples: Sequence[Example], config: EvalConfig, name: str) -> Iterator[tuple[Example, list[str]]]:
    """Examples with their answers as they come; those of one picture stand together, so that it is encoded once."""
    with progress(len(examples), f"eval {name}") as steps:
        for pair in answer_all(
            vlm, examples, sampling(config), batch_size=config.batch_size, num_generations=config.num_generations, seed=config.seed,
        ):  # fmt: skip
            steps.advance()
            yield pair


def scored(
    module: ModuleType, examples: Sequence[Example], predictions: dict[str, list[str]], folder: Path | None, seed: int
) -> dict[str, Any]:
    """Score answers that exist, and aggregate; rows go to scores.jsonl when a folder is given."""
    rows = [{"id": e.id, **module.score(e, predictions[e.id])} for e in examples]
    if folder is not None:
        write_whole(folder / "scores.jsonl", "".join(map(json_line, rows)))
    return dict(module.aggregate(rows, seed))
