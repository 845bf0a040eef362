"""Results on disk: where they are, what they hold, and whether two can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, data_hashes, first_valid, load_benchmark, parse_options
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError

MUST_MATCH = ("version", "files", "options", "prompt_sha256", "template_sha256", "judge", "generation", "limit")
"""Keys of result.json that must be equal in two results: data, options, prompts, chat template,
judge, generation."""
SETTING_LABELS = {
    "files": "data",
    "options": "options (prompt, parser)",
    "prompt_sha256": "prompts",
    "template_sha256": "chat template",
    "generation": "generation settings",
}
"""What messages call these keys, where the key does not say it."""


@dataclass(frozen=True)
class Result:
    """A benchmark's result on one model: its name in tables, its folder, result.json, and the rows
    of scores.jsonl."""

    name: str
    folder: Path
    summary: Mapping[str, Any]
    rows: list[ScoreRow]

    @property
    def benchmark(self) -> str:
        """The name or path of the benchmark."""
        return str(self.summary["benchmark"])

    @property
    def answered_ids(self) -> set[str]:
        """Ids of the examples whose answers count."""
        return {row["id"] for row in first_valid(self.rows)}


def read_runs(paths: Sequence[str]) -> dict[str, list[Result]]:
    """Return the results of the benchmarks that at least two runs have, by benchmark, in the order
    of the runs.

    A path is a run, or a folder of runs (MODEL/BENCHMARK). Raises InputError.
    """
    results_by_benchmark: dict[str, list[Result]] = {}
    for path in paths:
        files = Path(path).glob("**/result.json")
        folders = sorted(file.parent for file in files if len(file.relative_to(path).parts) <= 3)
        if not folders:
            raise InputError(f"{path} holds no result.json: give the --out of an eval run")
        for folder in folders:
            result = _read_result(folder, Path(path))
            results_by_benchmark.setdefault(result.benchmark, []).append(result)
    names = {result.name for results in results_by_benchmark.values() for result in results}
    for results in results_by_benchmark.values():
        # Names must tell the runs apart.
        if len({result.name for result in results}) < len(results):
            results[:] = [replace(result, name=str(result.folder)) for result in results]
    comparable = {benchmark: results for benchmark, results in results_by_benchmark.items() if len(results) > 1}
    if not comparable:
        raise InputError(f"nothing can be compared: {', '.join(sorted(names))} have no benchmark in common")
    return comparable


def _read_result(folder: Path, root: Path) -> Result:
    try:
        summary = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        # The root is a run itself, a folder of benchmarks, or a folder of MODEL/BENCHMARK.
        depth = len(folder.relative_to(root).parts)
        name = {0: root.name or str(root), 1: root.name, 2: folder.parent.name}[depth]
        assert isinstance(summary["metrics"], dict) and isinstance(summary["benchmark"], str)
    except (OSError, ValueError, KeyError, AssertionError):
        raise InputError(f"{folder / 'result.json'} was not written by eval: run eval again") from None
    return Result(name, folder, summary, read_jsonl(folder / "scores.jsonl"))


def differences(a: Result, b: Result) -> list[str]:
    """Return why the metrics of two results must not be compared, one phrase per reason; empty if
    they may."""
    problems = []
    for key in MUST_MATCH:
        value_a, value_b = _setting(a, key), _setting(b, key)
        if value_a is not None and value_b is not None and value_a != value_b:
            previews = f"{_preview_difference(value_a, value_b)} and {_preview_difference(value_b, value_a)}"
            problems.append(f"{SETTING_LABELS.get(key, key)} ({previews})")
    in_one_only = a.answered_ids ^ b.answered_ids
    if in_one_only:
        num_examples = len(a.answered_ids | b.answered_ids)
        problems.append(f"subset ({len(in_one_only)} of {num_examples} examples are answered in one of them only)")
    return problems


def _setting(result: Result, key: str) -> Any:
    """Return a value of result.json; for the data, its hashes without the names of the files."""
    value = result.summary.get(key)
    return sorted(value.values()) if key == "files" and isinstance(value, dict) else value


def _preview_difference(value: Any, other: Any) -> str:
    """Return the part of a value that differs from the other, shortened."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {str(v)[:16]}" for k, v in value.items() if other.get(k) != v) or "nothing"
    if isinstance(value, list):
        return ", ".join(str(v)[:12] for v in value)
    return str(value)[:40]


def unstated_settings(a: Result, b: Result) -> list[str]:
    """Return the settings that only one of two results states, so that they may differ: answer
    files state none."""
    unstated = [key for key in MUST_MATCH if (_setting(a, key) is None) != (_setting(b, key) is None)]
    return [SETTING_LABELS.get(key, key) for key in unstated]


def open_result(result: Result, ids: set[str]) -> tuple[Benchmark, Task, list[ScoreRow]]:
    """Return a result's benchmark, task and rows, restricted to these examples.

    Raises InputError if the data is gone or has changed.
    """
    summary = result.summary
    benchmark = load_benchmark(result.benchmark)
    # On the command line, None is spelled `none`.
    options = {key: "none" if value is None else value for key, value in (summary.get("options") or {}).items()}
    task = Task(
        data=summary.get("data"),
        image_folder=summary.get("image_folder"),
        answers=(summary.get("answers") or {}).get("path"),
        options=parse_options(benchmark, options),
        limit=summary.get("limit"),
        seed=summary.get("seed") or 0,
    )
    try:
        examples = benchmark.load(task)
        hashes = data_hashes(benchmark, task)
    except FileNotFoundError as error:
        raise InputError(f"{result.folder}: its data {error.filename} is gone: put it back where it was") from None
    if hashes != summary.get("files"):
        raise InputError(f"{result.folder}: its data {summary.get('data')} has changed since: put it back, or run eval again")
    judgments = result.folder / "judgments.jsonl"
    replies = {row["key"]: row for row in read_jsonl(judgments)} if judgments.exists() else {}
    task = replace(task, examples={e.id: e for e in examples if e.id in ids}, replies=replies)
    return benchmark, task, [row for row in result.rows if row["id"] in ids]
