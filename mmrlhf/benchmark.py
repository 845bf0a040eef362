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

from mmrlhf.content import find, load_module
from mmrlhf.intervals import Counted as Counted
from mmrlhf.intervals import bootstrap as bootstrap
from mmrlhf.intervals import fold_interval as fold_interval
from mmrlhf.records import Example, ImageSource, InputError
from mmrlhf.rows import objects
from mmrlhf.settings import load as load_config

STATED = ("VERSION", "LICENSE", "HEADLINE", "DIRECTION", "CLUSTER")


class Given(NamedTuple):
    """Answers to one prompt as a file gave them, in its order. `answers` holds None for a null."""

    id: str
    answers: list[str | None]


class Ask(NamedTuple):
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
    def pictures(self) -> Path:
        """Where relative paths of pictures start: --image_folder, or else the data's own folder."""
        return Path(self.image_folder) if self.image_folder else self.path if self.path.is_dir() else self.path.parent


def load_benchmark(name: str) -> ModuleType:
    """`name` is a file of `eval/` without its ending, or a path that ends in .py. Raises InputError for neither."""
    path = find("eval", name)
    module = load_module(path)
    lacking = [f for f in ("load", "score", "aggregate") if not callable(getattr(module, f, None))]
    if lacking:
        raise InputError(f"{path} is no benchmark: it has no function {' and no '.join(lacking)}")
    return module


def stated(module: ModuleType, name: str) -> dict[str, str]:
    """What the file says of itself. Raises InputError for what it leaves out."""
    found = {key: getattr(module, key, None) for key in STATED}
    for key, value in found.items():
        if not isinstance(value, str):
            also = ", and raise it when results change" if key == "VERSION" else ""
            raise InputError(f'benchmark {name} does not state its {key}: add {key} = "..."{also}')
    if found["DIRECTION"] not in ("higher", "lower"):
        raise InputError(f'benchmark {name}: DIRECTION must be "higher" or "lower", not {found["DIRECTION"]!r}')
    return {key: str(value) for key, value in found.items()}


def options_of(module: ModuleType, given: Mapping[str, Any]) -> Any:
    """The file's own options, checked like a stage's settings; None where it has none. Raises InputError."""
    if not hasattr(module, "Options"):
        if given:
            raise InputError(f"this benchmark has no option {', '.join(given)}")
        return None
    return load_config(module.Options, None, given)


def of_data(module: ModuleType, task: Task) -> dict[str, str]:
    """The sha256 of every file of the data that the benchmark reads, by name."""
    if task.data is None:
        return {}
    if hasattr(module, "files"):
        paths = module.files(task)
    else:
        paths = [task.path] if task.path.is_file() else sorted(p for p in task.path.iterdir() if p.is_file())
    found = {}
    for path in paths:
        with Path(path).open("rb") as file:
            found[Path(path).name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def says_it_all(task: Task, *fields: str) -> bool:
    """Whether the answers are a file whose rows, by these fields, say themselves what was asked."""
    path = Path(task.answers) if task.answers is not None else None
    if path is None or path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    return any({*fields} <= row.fields.keys() for row in objects(path)[:1])


def template(path: str | None, own: str) -> str:
    """A judge's template: the user's file, or the benchmark's own. Raises InputError."""
    if path is None:
        return own
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--judge_prompt {path} cannot be read ({error}): give a text file") from None


def fill(template: str, **fields: str) -> str:
    """A template with its fields, by name or, as `{}`, in their order. Raises InputError for a template that asks for others."""
    try:
        return template.format(*fields.values(), **fields)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in fields)
        raise InputError(f"--judge_prompt cannot be filled in ({type(error).__name__}: {error}): it may hold {names}") from None


def first(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that count where a script's habits do not: of ids that are known, the first answer, if it is one."""
    return [row for row in rows if row["status"] == "ok"]


TWICE = "an example is answered twice, and only its first answer was judged"


def twice(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether an example has several answers, where a judge has seen the first."""
    return any(row["status"] == "duplicate" for row in rows)


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016), words split at white space; 0 without any."""
    grams = [tuple(words[i : i + n]) for words in (a.lower().split() for a in answers) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def ead(answers: Sequence[str], vocabulary: int) -> float:
    """Expectation-adjusted distinct words (Liu et al. 2022): distinct over V (1 - ((V - 1) / V) ** C) for C words."""
    words = [w for a in answers for w in a.lower().split()]
    return len(set(words)) / (vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** len(words))) if words else 0.0
