"""Benchmarks: one small file each, found by name in `eval/` or by path; what such a file is given, and what it gives back.

It states VERSION, LICENSE, HEADLINE (the metric to report), DIRECTION ("higher" or "lower" is better) and CLUSTER (what its intervals are
resampled over), and has `load(task)`, `score(example, answers, task)` and `aggregate(rows, task)`; `eval/README.md` shows one. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from mmrlhf.config_loader import load_config
from mmrlhf.files.bundled import find, load_module
from mmrlhf.files.rows import read_json_objects
from mmrlhf.records import Example, ImageSource, InputError

METADATA_FIELDS = ("VERSION", "LICENSE", "HEADLINE", "DIRECTION", "CLUSTER")


class Prediction(NamedTuple):
    """Answers to one prompt as a file gave them, in its order. `answers` holds None for a null."""

    id: str
    answers: list[str | None]


class JudgeRequest(NamedTuple):
    """A question to a judge. `key` names it in judgments.jsonl; `template` is what its text was filled into."""

    key: str
    prompt: str
    template: str = ""
    images: tuple[ImageSource, ...] = ()


@dataclass(frozen=True)
class Task:
    """What a benchmark file works on: the user's data and settings, and what stages before have found.

    answers: the file of answers that are scored, for a benchmark whose official files of answers say what was asked.
    options: the file's own `Options`, checked. examples: by id, in their order, once loaded. replies: judgments by the key of their `Ask`,
    each with `text` (None where the judge failed) and `status`.
    """

    data: str | None = None
    image_folder: str | None = None
    answers: str | None = None
    options: Any = None
    limit: int | None = None
    seed: int = 0
    examples: Mapping[str, Example] = field(default_factory=dict)
    replies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The data. Raises InputError when none was given or it is not there."""
        if self.data is None:
            raise InputError("this benchmark needs its data: add --data PATH")
        path = Path(self.data)
        if not path.exists():
            raise InputError(f"--data {path} does not exist: correct the path")
        return path

    @property
    def image_root(self) -> Path:
        """Where relative paths of pictures start: --image_folder, or else the data's own folder."""
        return Path(self.image_folder) if self.image_folder else self.path if self.path.is_dir() else self.path.parent


def load_benchmark(name: str) -> ModuleType:
    """`name` is a file of `eval/` without its ending, or a path that ends in .py. Raises InputError for neither."""
    path = find("eval", name)
    module = load_module(path)
    missing = [f for f in ("load", "score", "aggregate") if not callable(getattr(module, f, None))]
    if missing:
        raise InputError(f"{path} is no benchmark: it has no function {' and no '.join(missing)}")
    return module


def benchmark_metadata(module: ModuleType, name: str) -> dict[str, str]:
    """What the file says of itself. Raises InputError for what it leaves out."""
    metadata = {key: getattr(module, key, None) for key in METADATA_FIELDS}
    for key, value in metadata.items():
        if not isinstance(value, str):
            hint = ", and raise it when results change" if key == "VERSION" else ""
            raise InputError(f'benchmark {name} does not state its {key}: add {key} = "..."{hint}')
    if metadata["DIRECTION"] not in ("higher", "lower"):
        raise InputError(f'benchmark {name}: DIRECTION must be "higher" or "lower", not {metadata["DIRECTION"]!r}')
    return {key: str(value) for key, value in metadata.items()}


def parse_options(module: ModuleType, values: Mapping[str, Any]) -> Any:
    """The file's own options, checked like a stage's settings; None where it has none. Raises InputError."""
    if not hasattr(module, "Options"):
        if values:
            raise InputError(f"this benchmark has no option {', '.join(values)}")
        return None
    return load_config(module.Options, None, values)


def data_hashes(module: ModuleType, task: Task) -> dict[str, str]:
    """The sha256 of every file of the data that the benchmark reads, by name."""
    if task.data is None:
        return {}
    if hasattr(module, "files"):
        paths = module.files(task)
    else:
        paths = [task.path] if task.path.is_file() else sorted(p for p in task.path.iterdir() if p.is_file())
    digests = {}
    for path in paths:
        with Path(path).open("rb") as file:
            digests[Path(path).name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def is_self_describing(task: Task, *fields: str) -> bool:
    """Whether the answers are a file whose rows, by these fields, say themselves what was asked."""
    path = Path(task.answers) if task.answers is not None else None
    if path is None or path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    return any({*fields} <= row.fields.keys() for row in read_json_objects(path)[:1])


def load_template(path: str | None, default: str) -> str:
    """A judge's template: the user's file, or the benchmark's own. Raises InputError."""
    if path is None:
        return default
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judge_prompt {path} cannot be read ({error}): give a text file") from None


def fill_template(template: str, **fields: str) -> str:
    """A template with its fields, by name or, as `{}`, in their order. Raises InputError for a template that asks for others."""
    try:
        return template.format(*fields.values(), **fields)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in fields)
        raise InputError(f"--judge_prompt cannot be filled in ({type(error).__name__}: {error}): it may hold {names}") from None


def first_valid(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count where a script's habits do not: of ids that are known, the first answer, if it is one."""
    return [row for row in rows if row["status"] == "ok"]


DUPLICATES_REASON = "an example is answered twice, and only its first answer was judged"


def has_duplicates(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether an example has several answers, where a judge has seen the first."""
    return any(row["status"] == "duplicate" for row in rows)
