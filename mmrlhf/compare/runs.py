"""Results on the disk: where they are, what is in them, and whether two can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.benchmark import Task, load_benchmark, of_data, options_of
from mmrlhf.lines import read_jsonl
from mmrlhf.records import InputError

SAME = ("version", "files", "options", "prompt_sha256", "template_sha256", "judge", "generation", "limit")
"""What must be equal of two results: data, parser, prompts, chat template, judge, and how answers were generated."""
WORDS = {"files": "data", "options": "options (prompt, parser)", "prompt_sha256": "prompts", "template_sha256": "chat template",
         "generation": "generation settings"}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One benchmark on one model: its name for tables, its folder, result.json, and the rows of scores.jsonl."""

    name: str
    folder: Path
    said: Mapping[str, Any]
    rows: list[dict[str, Any]]

    @property
    def benchmark(self) -> str:
        return str(self.said["benchmark"])

    @property
    def answered(self) -> set[str]:
        """Ids that count."""
        return {r["id"] for r in self.rows if r["status"] == "ok"}


def read_runs(paths: Sequence[str]) -> dict[str, list[Result]]:
    """Results by benchmark, in the order of the runs. A path is a run, or a folder of runs (MODEL/BENCHMARK). Raises InputError."""
    found: dict[str, list[Result]] = {}
    for path in paths:
        folders = sorted(p.parent for p in Path(path).glob("**/result.json") if len(p.relative_to(path).parts) <= 3)
        if not folders:
            raise InputError(f"{path} holds no result.json: give the --out of an eval run")
        for folder in folders:
            result = _read(folder, Path(path))
            found.setdefault(result.benchmark, []).append(result)
    names = {r.name for results in found.values() for r in results}
    for results in found.values():  # a name says one run
        if len({r.name for r in results}) < len(results):
            results[:] = [replace(r, name=str(r.folder)) for r in results]
    several = {benchmark: results for benchmark, results in found.items() if len(results) > 1}
    if not several:
        raise InputError(f"nothing can be compared: {', '.join(sorted(names))} have no benchmark in common")
    return several


def _read(folder: Path, root: Path) -> Result:
    try:
        said = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        name = {0: root.name or str(root), 1: root.name, 2: folder.parent.name}[len(folder.relative_to(root).parts)]
        assert isinstance(said["metrics"], dict) and isinstance(said["benchmark"], str)
    except (OSError, ValueError, KeyError, AssertionError):
        raise InputError(f"{folder / 'result.json'} is not what eval writes: run eval again") from None
    return Result(name, folder, said, read_jsonl(folder / "scores.jsonl"))


def differences(a: Result, b: Result) -> list[str]:
    """Why figures of two results should not stand side by side, one phrase each; none where they may."""
    found = []
    for key in SAME:
        one, other = _kept(a, key), _kept(b, key)
        if one is not None and other is not None and one != other:
            found.append(f"{WORDS.get(key, key)} ({_shown(one, other)} and {_shown(other, one)})")
    if missing := a.answered ^ b.answered:
        found.append(f"subset ({len(missing)} of {len(a.answered | b.answered)} examples are answered in one of them only)")
    return found


def _kept(result: Result, key: str) -> Any:
    """A key of result.json; of data the hashes, whatever the files are called."""
    value = result.said.get(key)
    return sorted(value.values()) if key == "files" and isinstance(value, dict) else value


def _shown(value: Any, other: Any) -> str:
    """The part of a value that differs."""
    if isinstance(value, dict) and isinstance(other, dict):
        return ", ".join(f"{k} {str(v)[:16]}" for k, v in value.items() if other.get(k) != v) or "nothing"
    if isinstance(value, list):
        return ", ".join(str(v)[:12] for v in value)
    return str(value)[:40]


def unsaid(a: Result, b: Result) -> list[str]:
    """What one of two results does not say, so that it may differ: answers from a file bring no settings."""
    return [WORDS.get(key, key) for key in SAME if (_kept(a, key) is None) != (_kept(b, key) is None)]


def opened(result: Result, ids: set[str]) -> tuple[ModuleType, Task, list[dict[str, Any]]]:
    """A result's benchmark, its task and rows, of these examples alone. Raises InputError where the data is gone or another."""
    said, name = result.said, result.benchmark
    module = load_benchmark(name)
    options = {k: v for k, v in (said.get("options") or {}).items() if v is not None}
    empty = {k: "none" for k, v in (said.get("options") or {}).items() if v is None}
    task = Task(
        said.get("data"), said.get("image_folder"), (said.get("answers") or {}).get("path"), options_of(module, {**options, **empty}),
        said.get("limit"), said.get("seed") or 0,
    )  # fmt: skip
    try:
        examples = {e.id: e for e in module.load(task)}
        hashes = of_data(module, task)
    except FileNotFoundError as error:
        raise InputError(f"{result.folder}: its data {error.filename} is gone: put it back where it was") from None
    if hashes != said.get("files"):
        raise InputError(f"{result.folder}: its data {said.get('data')} has changed since: put it back, or run eval again")
    judgments = result.folder / "judgments.jsonl"
    replies = {r["key"]: r for r in read_jsonl(judgments)} if judgments.exists() else {}
    task = replace(task, examples={i: e for i, e in examples.items() if i in ids}, replies=replies)
    return module, task, [r for r in result.rows if r["id"] in ids]
