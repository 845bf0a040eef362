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

from mmrlhf.config import EvalConfig, read_yaml, settings, suggestion
from mmrlhf.records import InputError

SHORT = {"model": "model_name_or_path", "adapter": "adapter_path", "out": "output_dir"}


@dataclass(frozen=True)
class Suite:
    """What to measure: settings by benchmark and by model, and those of all."""

    benchmarks: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)


class Planned(NamedTuple):
    """One benchmark on one model: what `evaluate` is called with."""

    benchmark: str
    config: EvalConfig
    options: dict[str, Any]


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises InputError."""
    values = read_yaml(path)
    parts = {}
    for part in ("benchmarks", "models"):
        inner = values.pop(part, {})
        if isinstance(inner, list):
            inner = dict.fromkeys(inner, {})
        if not isinstance(inner, dict) or not all(isinstance(v, dict | None) for v in inner.values()):
            raise InputError(f"{path}: {part} must be lines of `NAME: {{setting: value}}`")
        parts[part] = {str(name): _long(v or {}) for name, v in inner.items()}
    if not parts["benchmarks"]:
        raise InputError(f"{path} names no benchmarks: add `benchmarks:` with a line for each")
    return Suite(parts["benchmarks"], parts["models"], _long(values))


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
    models = {**suite.models, **_models(given)} or {"": {}}
    if "model_name_or_path" in given or "answers" in given:
        models = _models(given)
    for name in ("model_name_or_path", "answers"):
        given.pop(name, None)
    data = given.pop("data", [])
    out = given.pop("output_dir", suite.common.get("output_dir"))
    one = len(models) * len(suite.benchmarks) == 1
    runs, known = [], settings(EvalConfig)
    for label, model in models.items():
        for name, own in suite.benchmarks.items():
            short = Path(name).stem
            if model.get("answers_of") not in (None, name):
                continue
            values = {**suite.common, **model, **own, **given}
            values.pop("answers_of", None)
            if data:
                values["data"] = _data(data, name, len(suite.benchmarks))
            if out is not None:
                values["output_dir"] = str(out) if one else str(Path(str(out)) / (label or "model") / short)
            chosen = {k: values.pop(k) for k in list(values) if k not in known and k != "config"} | dict(options.get(name, {}))
            runs.append(Planned(name, load(values), chosen))
    return runs


def _models(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Models, or files of answers, by label: what stands before `=`, else the last part of the path that tells them apart."""
    found: dict[str, dict[str, Any]] = {}
    names, answers = given.get("model_name_or_path", []), given.get("answers", [])
    if answers and len(names) > 1:
        raise InputError("--answers are of one model: give one --model, or leave it out")
    for value in answers or names:
        label, path = _named(value)
        entry: dict[str, Any] = {"model_name_or_path": path} if not answers else {"answers": path, **dict.fromkeys(["model_name_or_path"] * bool(names), *names)}
        label = label or _label(path)
        if label in found:
            label = f"{label}-{len(found) + 1}"
        found[label] = entry
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


def _data(given: Sequence[str], name: str, benchmarks: int) -> str:
    """A benchmark's data of several: `NAME=PATH`, else the folder of its name in the one folder that holds all."""
    named = dict(_named(value) for value in given)
    short = Path(name).stem
    if short in named:
        return named[short]
    if set(named) == {""} and benchmarks == 1:
        return named[""]
    root = Path(named.get("", ""))
    if "" in named and root.is_dir():
        inside = [p for p in root.iterdir() if p.is_dir() and re.sub(r"\W|_", "", p.name).lower() == re.sub(r"\W|_", "", short).lower()]
        if inside:
            return str(inside[0])
        raise InputError(f"--data {root} has no folder for {short}: {suggestion(short, [p.name for p in root.iterdir()])}")
    raise InputError(f"--data says nothing of {short}: add --data {short}=PATH")
