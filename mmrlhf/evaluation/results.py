"""Results on disk: their location and content, and whether two can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, data_hashes, first_valid, load_benchmark, parse_options
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.rows import type_name
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
"""Names of these keys in messages, if the key is not clear by itself."""


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

    @property
    def answer_notes(self) -> list[str]:
        """Eval's notes on the file of answers: rows that are unknown, repeated or not joined by
        their ids."""
        return list((self.summary.get("answers") or {}).get("notes", ()))


def read_runs(paths: Sequence[str]) -> dict[str, list[Result]]:
    """Return the results of the benchmarks that at least two runs have, by benchmark, in the order
    of the runs.

    A path is a run, or a folder of runs (MODEL/BENCHMARK). Raises InputError.
    """
    results_by_benchmark: dict[str, list[Result]] = {}
    for path in paths:
        for result in read_results(path):
            results_by_benchmark.setdefault(result.benchmark, []).append(result)
    names = {result.name for results in results_by_benchmark.values() for result in results}
    for results in results_by_benchmark.values():
        # Names must distinguish the runs.
        if len({result.name for result in results}) < len(results):
            results[:] = [replace(result, name=str(result.folder)) for result in results]
    comparable = {benchmark: results for benchmark, results in results_by_benchmark.items() if len(results) > 1}
    if not comparable:
        raise InputError(f"nothing can be compared: {', '.join(sorted(names))} have no benchmark in common")
    return comparable


def read_results(path: str) -> list[Result]:
    """Return the results in a run, or in a folder of runs (MODEL/BENCHMARK). Raises InputError."""
    files = Path(path).glob("**/result.json")
    folders = sorted(file.parent for file in files if len(file.relative_to(path).parts) <= 3)
    if not folders:
        raise InputError(f"{path} holds no result.json: give the --out of an eval run")
    return [_read_result(folder, Path(path)) for folder in folders]


# ---- what the files hold -------------------------------------------------------------------------

SUMMARY_TYPES: Mapping[str, tuple[type, ...]] = {
    "benchmark": (str,),
    "version": (str,),
    "headline": (str,),
    "direction": (str,),
    "metrics": (dict,),
    "cluster": (str,),
    "data": (str, type(None)),
    "image_folder": (str, type(None)),
    "answers": (dict, type(None)),
    "options": (dict, type(None)),
    "files": (dict,),
    "limit": (int, type(None)),
    "seed": (int, type(None)),
    "n": (int,),
}
"""Types of the values of result.json that `compare` uses."""
REQUIRED_SUMMARY = ("benchmark", "version", "headline", "direction", "metrics")
STATUSES = ("ok", "duplicate", "unknown", "null")


def _read_result(folder: Path, root: Path) -> Result:
    path = folder / "result.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{path} was not written by eval: run eval again") from None
    if not isinstance(summary, dict) or any(key not in summary for key in REQUIRED_SUMMARY):
        raise InputError(f"{path} was not written by eval: run eval again")
    _check_summary(path, summary)
    # The root is a run itself, a folder of benchmarks, or a folder of MODEL/BENCHMARK.
    depth = len(folder.relative_to(root).parts)
    name = {0: root.name or str(root), 1: root.name, 2: folder.parent.name}[depth]
    rows = read_jsonl(folder / "scores.jsonl")
    _check_score_rows(folder / "scores.jsonl", rows, summary.get("n"))
    return Result(name, folder, summary, rows)


def _check_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Raise InputError if a value of result.json is not as eval writes it."""
    for key, types in SUMMARY_TYPES.items():
        value = summary.get(key)
        if key in summary and (not isinstance(value, types) or isinstance(value, bool)):
            raise InputError(f"{path}: `{key}` must not be {type_name(value)}: run eval again")
    if summary["direction"] not in ("higher", "lower"):
        raise InputError(f"{path}: `direction` must be higher or lower: run eval again")
    answers = summary.get("answers") or {}
    notes = answers.get("notes", [])
    texts = [*(summary.get("files") or {}).values(), answers.get("path", ""), *(notes if isinstance(notes, list) else [None])]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{path}: the hashes of `files`, and the path and notes of `answers`, must be text: run eval again")
    if (summary.get("limit") or 0) < 0:
        raise InputError(f"{path}: `limit` must not be negative: run eval again")
    _check_unicode(path, [summary])


def _check_score_rows(path: Path, rows: Sequence[Mapping[str, Any]], num_valid: int | None) -> None:
    """Raise InputError if rows of scores.jsonl lack fields that eval writes into every row."""
    for number, row in enumerate(rows, 1):
        answers = row.get("answers")
        if not isinstance(row.get("id"), str) or row.get("status") not in STATUSES or not isinstance(answers, list):
            raise InputError(f"{path} row {number}: `id`, `status` or `answers` is not what eval writes: run eval again")
        is_scored = row["status"] in ("ok", "duplicate")
        if not all(isinstance(answer, str) or (answer is None and not is_scored) for answer in answers) or (
            is_scored and not answers
        ):
            raise InputError(f"{path} row {number}: `answers` must be texts: run eval again")
    counts = Counter(row["id"] for row in rows if row["status"] == "ok")
    if counts and max(counts.values()) > 1:
        raise InputError(f"{path}: {max(counts, key=lambda id_: counts[id_])} is answered twice with status ok: run eval again")
    if num_valid is not None and counts.total() != num_valid:
        raise InputError(f"{path} holds {counts.total()} answers, and result.json is about {num_valid}: run eval again")
    _check_unicode(path, rows)


def _check_unicode(path: Path, values: Iterable[Any]) -> None:
    try:
        for value in values:
            json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        raise InputError(f"{path} holds text that is not valid Unicode, or is nested too deeply: run eval again") from None


def _read_replies(path: Path) -> dict[str, dict[str, Any]]:
    """Return the judge's replies by key. Raises InputError if a row is not as eval writes it."""
    rows = read_jsonl(path) if path.exists() else []
    for number, row in enumerate(rows, 1):
        text, status = row.get("text"), row.get("status", "ok")
        if not isinstance(row.get("key"), str) or not isinstance(text, str | None) or not isinstance(status, str):
            raise InputError(f"{path} row {number}: `key`, `text` or `status` is not text: run eval again")
    _check_unicode(path, rows)
    return {row["key"]: row for row in rows}


# ---- comparing -----------------------------------------------------------------------------------


def differences(a: Result, b: Result) -> list[str]:
    """Return why the metrics of two results must not be compared, one phrase per reason; empty if
    they may."""
    problems = []
    for key in MUST_MATCH:
        value_a, value_b = _setting(a, key), _setting(b, key)
        if value_a is not None and value_b is not None and value_a != value_b:
            previews = f"{_preview_difference(value_a, value_b)} and {_preview_difference(value_b, value_a)}"
            label = SETTING_LABELS.get(key, key)
            problems.append(label if key.endswith("sha256") else f"{label} ({previews})")  # hashes tell a reader nothing
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
    """Return the settings that only one of two results records, so they may differ: answer files
    record none."""
    unstated = [key for key in MUST_MATCH if (_setting(a, key) is None) != (_setting(b, key) is None)]
    return [SETTING_LABELS.get(key, key) for key in unstated]


def load_benchmark_of(result: Result, own_files: Sequence[str] = ()) -> Benchmark:
    """Return the benchmark of a result: one of the package's, or a file among `own_files`.

    The path in result.json is never loaded, since this would run code that came with the results.
    Raises InputError for a file that is not among `own_files`, or a result of another version of
    its benchmark.
    """
    location, name = result.folder / "result.json", result.benchmark
    if name.endswith(".py"):
        paths = [path for path in own_files if Path(path).name == Path(name).name]
        if not paths:
            raise InputError(
                f"{location}: its benchmark is the file {name}, which compare does not run unasked: "
                f"add --benchmark_file PATH/{Path(name).name} if you trust it"
            )
        name = paths[0]
    benchmark = load_benchmark(name)
    if benchmark.version != result.summary["version"]:
        raise InputError(
            f"{location}: scored by version {result.summary['version']} of {result.benchmark}, which is {benchmark.version} now: "
            "run eval again"
        )
    return benchmark


def open_result(result: Result, benchmark: Benchmark, ids: set[str]) -> tuple[Task, list[ScoreRow]]:
    """Return a result's task and rows, restricted to these examples.

    Raises InputError if the data is missing or has changed.
    """
    summary = result.summary
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
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise InputError(f"{result.folder}: its data {summary.get('data')!r} cannot be read ({error}): run eval again") from None
    if hashes != summary.get("files"):
        raise InputError(f"{result.folder}: its data {summary.get('data')} has changed since: put it back, or run eval again")
    by_id = {example.id: example for example in examples if example.id in ids}
    if len(by_id) < len(ids):
        raise InputError(
            f"{result.folder / 'scores.jsonl'}: {len(ids) - len(by_id)} ids are not in {summary.get('data')}: run eval again"
        )
    replies = _read_replies(result.folder / "judgments.jsonl")
    return replace(task, examples=by_id, replies=replies), [row for row in result.rows if row["id"] in ids]
