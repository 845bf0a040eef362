"""Results on the disk: where they are, what is in them, and whether two can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.evaluation.benchmark import Task, data_hashes, load_benchmark, parse_options
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError

MUST_MATCH = ("version", "files", "options", "prompt_sha256", "template_sha256", "judge", "generation", "limit")
"""What must be equal of two results: data, parser, prompts, chat template, judge, and how answers were generated."""
SETTING_LABELS = {"files": "data", "options": "options (prompt, parser)", "prompt_sha256": "prompts", "template_sha256": "chat template",
         "generation": "generation settings"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One benchmark on one model: its name for tables, its folder, result.json, and the rows of scores.jsonl."""

    name: str
    folder: Path
    summary: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def benchmark(self) -> str:
        return str(self.summary["benchmark"])

    @property
    def answered_ids(self) -> set[str]:
        """Ids that count."""
        return {r["id"] for r in self.rows if r["status"] == "ok"}


def read_runs(paths: Sequence[str]) -> dict[str, list[Result]]:
    """Results by benchmark, in the order of the runs. A path is a run, or a folder of runs (MODEL/BENCHMARK). Raises InputError."""
    results_by_benchmark: dict[str, list[Result]] = {}
    for path in paths:
        folders = sorted(p.parent for p in Path(path).glob("**/result.json") if len(p.relative_to(path).parts) <= 3)
        if not folders:
            raise InputError(f"{path} holds no result.json: give the --out of an eval run")
        for folder in folders:
            result = _read_result(folder, Path(path))
            results_by_benchmark.setdefault(result.benchmark, []).append(result)
    names = {r.name for results in results_by_benchmark.values() for r in results}
    for results in results_by_benchmark.values():  # a name says one run
        if len({r.name for r in results}) < len(results):
            results[:] = [replace(r, name=str(r.folder)) for r in results]
    comparable = {benchmark: results for benchmark, results in results_by_benchmark.items() if len(results) > 1}
    if not comparable:
        raise InputError(f"nothing can be compared: {', '.join(sorted(names))} have no benchmark in common")
    return comparable


def _read_result(folder: Path, root: Path) -> Result:
    try:
        summary = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        name = {0: root.name or str(root), 1: root.name, 2: folder.parent.name}[len(folder.relative_to(root).parts)]
        assert isinstance(summary["metrics"], dict) and isinstance(summary["benchmark"], str)
    except (OSError, ValueError, KeyError, AssertionError):
        raise InputError(f"{folder / 'result.json'} is not what eval writes: run eval again") from None
    return Result(name, folder, summary, read_jsonl(folder / "scores.jsonl"))


def differences(a: Result, b: Result) -> list[str]:
    """Why figures of two results should not stand side by side, one phrase each; none where they may."""
    problems = []
    for key in MUST_MATCH:
        value_a, value_b = _setting(a, key), _setting(b, key)
        if value_a is not None and value_b is not None and value_a != value_b:
            problems.append(
                f"{SETTING_LABELS.get(key, key)} ({_preview_difference(value_a, value_b)} and {_preview_difference(value_b, value_a)})"
            )
    if missing := a.answered_ids ^ b.answered_ids:
        problems.append(
            f"subset ({len(missing)} of {len(a.answered_ids | b.answered_ids)} examples are answered in one of them only)"
        )
    return problems


def _setting(result: Result, key: str) -> Any:
    """A key of result.json; of data the hashes, whatever the files are called."""
    value = result.summary.get(key)
    return sorted(value.values()) if key == "files" and isinstance(value, dict) else value


def _preview_difference(value: Any, other: Any) -> str:
    """The part of a value that differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {str(v)[:16]}" for k, v in value.items() if other.get(k) != v) or "nothing"
    if isinstance(value, list):
        return ", ".join(str(v)[:12] for v in value)
    return str(value)[:40]


def unstated_settings(a: Result, b: Result) -> list[str]:
    """What one of two results does not say, so that it may differ: answers from a file bring no settings."""
    return [SETTING_LABELS.get(key, key) for key in MUST_MATCH if (_setting(a, key) is None) != (_setting(b, key) is None)]


def open_result(result: Result, ids: set[str]) -> tuple[ModuleType, Task, list[dict[str, Any]]]:
    """A result's benchmark, its task and rows, of these examples alone. Raises InputError where the data is gone or another."""
    summary, name = result.summary, result.benchmark
    module = load_benchmark(name)
    options = {k: v for k, v in (summary.get("options") or {}).items() if v is not None}
    none_options = {k: "none" for k, v in (summary.get("options") or {}).items() if v is None}
    task = Task(
        summary.get("data"), summary.get("image_folder"), (summary.get("answers") or {}).get("path"), parse_options(module, {**options, **none_options}),
        summary.get("limit"), summary.get("seed") or 0,
    )  # fmt: skip
    try:
        examples = {e.id: e for e in module.load(task)}
        hashes = data_hashes(module, task)
    except FileNotFoundError as error:
        raise InputError(f"{result.folder}: its data {error.filename} is gone: put it back where it was") from None
    if hashes != summary.get("files"):
        raise InputError(f"{result.folder}: its data {summary.get('data')} has changed since: put it back, or run eval again")
    judgments = result.folder / "judgments.jsonl"
    replies = {r["key"]: r for r in read_jsonl(judgments)} if judgments.exists() else {}
    task = replace(task, examples={i: e for i, e in examples.items() if i in ids}, replies=replies)
    return module, task, [r for r in result.rows if r["id"] in ids]
