"""Several benchmarks on several models in one call: from the command line, or from a YAML file.

    benchmarks:
      pope: {data: POPE, image_folder: val2014}
      chair: {data: annotations, lineage: a, limit: 500}
    models:
      base: {model: runs/sft/model}
      tuned: {model: runs/sft/model, adapter_path: runs/ppo/policy}
    response_length: 64

What stands beside `benchmarks` and `models` holds for all; flags win over it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.config import EvalConfig
from mmrlhf.records import InputError
from mmrlhf.settings import read_yaml, settings

SHORT = {"model": "model_name_or_path", "adapter": "adapter_path", "out": "output_dir"}


@dataclass(frozen=True)
class Suite:
    """What to measure: settings by benchmark and by model, and those of all."""

    benchmarks: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)


class Planned(NamedTuple):
    """One benchmark on one model: what `evaluate` is called with, and the model's label."""

    model: str
    benchmark: str
    config: EvalConfig
    options: dict[str, Any]


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises InputError."""
    values = read_yaml(path)
    parts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for part in ("benchmarks", "models"):
        inner = values.pop(part, {})
        if isinstance(inner, list):
            inner = {name: {} for name in inner}
        if not isinstance(inner, dict) or not all(isinstance(v, dict | None) for v in inner.values()):
            raise InputError(f"{path}: {part} must be lines of `NAME: {{setting: value}}`")
        parts[part] = {str(name): v or {} for name, v in inner.items()}
    if not parts["benchmarks"]:
        raise InputError(f"{path} names no benchmarks: add `benchmarks:` with a line for each")
    return suite_of(parts["benchmarks"], parts["models"], values)


def suite_of(
    benchmarks: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]], common: Mapping[Any, Any]
) -> Suite:
    """Of settings that may go by their short names."""
    return Suite({k: _long(v) for k, v in benchmarks.items()}, {k: _long(v) for k, v in models.items()}, _long(common))


def _long(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {SHORT.get(str(k), str(k)): v for k, v in values.items()}


def expand(
    suite: Suite, given: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], load: Callable[[dict[str, Any]], EvalConfig]
) -> list[Planned]:
    """Every benchmark on every model, each with its folder: --out itself for one, --out/MODEL/BENCHMARK for several.

    given: flags, of which model_name_or_path, answers and data may be lists; `NAME=PATH` says which model (its label) or benchmark is meant.
    Raises InputError.
    """
    given = dict(given)
    names, answers = given.pop("model_name_or_path", []), given.pop("answers", [])
    data, out = given.pop("data", []), given.pop("output_dir", suite.common.get("output_dir"))
    if answers and len(names) > 1:
        raise InputError("--answers are of one model: give one --model, or leave it out")
    model = dict(zip(["model_name_or_path"], names, strict=False))
    of_benchmark = {label: path for label, path in map(_named, answers) if label in map(_short, suite.benchmarks)}
    if of_benchmark:
        models: Mapping[str, Mapping[str, Any]] = {_label(names[0]) if names else "model": model}
    elif answers:
        models = {label: {**model, "answers": path} for label, path in _labelled(answers).items()}
    elif names:
        models = {label: {"model_name_or_path": path} for label, path in _labelled(names).items()}
    else:
        models = suite.models or {"model": {}}
    one = len(models) * len(suite.benchmarks) == 1
    runs, known = [], settings(EvalConfig)
    for label, of_model in models.items():
        for name, own in suite.benchmarks.items():
            values = {**suite.common, **of_model, **own, **given}
            if _short(name) in of_benchmark:
                values["answers"] = of_benchmark[_short(name)]
            if data:
                values["data"] = _data(data, _short(name), len(suite.benchmarks))
            if out is not None:
                values["output_dir"] = str(out if one else Path(str(out)) / label / _short(name))
            chosen = {k: values.pop(k) for k in list(values) if k not in known and k != "config"} | dict(options.get(name, {}))
            runs.append(Planned(label, name, load(values), chosen))
    return runs


def _short(benchmark: str) -> str:
    return Path(benchmark).stem


def _labelled(values: Sequence[str]) -> dict[str, str]:
    """Paths by label: what stands before `=`, else what the path itself says, with a number where two say the same."""
    found: dict[str, str] = {}
    for label, path in map(_named, values):
        label = label or _label(path)
        found[label if label not in found else f"{label}-{len(found) + 1}"] = path
    return found


def _named(value: str) -> tuple[str, str]:
    """`NAME=PATH` in its two parts; a path that exists is a path, whatever it holds."""
    label, sign, path = value.partition("=")
    return (label, path) if sign and not Path(value).exists() and re.fullmatch(r"[\w.-]+", label) else ("", value)


def _label(path: str) -> str:
    """A folder's name for a model: `runs/sft/model` is sft."""
    parts = [p for p in Path(path).parts if p not in ("/", "model", "policy", ".", "..")]
    stem = parts[-1] if parts else "model"
    return re.sub(r"[^\w.-]+", "-", Path(stem).stem if Path(path).is_file() else stem)


def _data(given: Sequence[str], benchmark: str, of: int) -> str:
    """A benchmark's data, of several benchmarks: `NAME=PATH`, else the folder of its name in the one folder that holds all."""
    named = dict(map(_named, given))
    if benchmark in named:
        return named[benchmark]
    if "" in named and of == 1:
        return named[""]
    root = Path(named.get("", ""))
    if "" in named and root.is_dir():
        inside = {re.sub(r"\W|_", "", p.name).lower(): p for p in root.iterdir() if p.is_dir()}
        if (plain := re.sub(r"\W|_", "", benchmark).lower()) in inside:
            return str(inside[plain])
        raise InputError(f"--data {root} has no folder for {benchmark}: add --data {benchmark}=PATH")
    raise InputError(f"--data says nothing of {benchmark}: add --data {benchmark}=PATH")
