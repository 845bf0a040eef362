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
from mmrlhf.config_loader import config_fields, read_yaml, renamed, renamed_field
from mmrlhf.records import InputError

ALIASES = {"model": "model_name_or_path", "adapter": "adapter_path", "out": "output_dir"}


@dataclass(frozen=True)
class Suite:
    """What to measure: settings by benchmark and by model, and those of all."""

    benchmarks: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)


class EvalRun(NamedTuple):
    """One benchmark on one model: what `evaluate` is called with, and the model's label."""

    model: str
    benchmark: str
    config: EvalConfig
    options: dict[str, Any]


def read_suite(path: Path) -> Suite:
    """A suite's file. Raises InputError."""
    values = read_yaml(path)
    sections: dict[str, dict[str, Mapping[str, Any]]] = {}
    for section in ("benchmarks", "models"):
        entries = values.pop(section, {})
        if isinstance(entries, list):
            entries = {name: {} for name in entries}
        if not isinstance(entries, dict) or not all(isinstance(v, dict | None) for v in entries.values()):
            raise InputError(f"{path}: {section} must be lines of `NAME: {{setting: value}}`")
        sections[section] = {str(name): v or {} for name, v in entries.items()}
    if not sections["benchmarks"]:
        raise InputError(f"{path} names no benchmarks: add `benchmarks:` with a line for each")
    return make_suite(sections["benchmarks"], sections["models"], values)


def make_suite(
    benchmarks: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]], common: Mapping[Any, Any]
) -> Suite:
    """Of settings that may go by their short names."""
    return Suite(
        {k: _expand_aliases(v) for k, v in benchmarks.items()},
        {k: _expand_aliases(v) for k, v in models.items()},
        _expand_aliases(common),
    )


def _expand_aliases(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {ALIASES.get(str(k), str(k)): v for k, v in values.items()}


def expand_runs(
    suite: Suite, flags: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], load: Callable[[dict[str, Any]], EvalConfig]
) -> list[EvalRun]:
    """Every benchmark on every model, each with its folder: --out itself for one, --out/MODEL/BENCHMARK for several.

    given: flags, of which model_name_or_path, answers and data may be lists; `NAME=PATH` says which model (its label) or benchmark is meant.
    Raises InputError.
    """
    flags = dict(flags)
    model_paths, answer_files = flags.pop("model_name_or_path", []), flags.pop("answers", [])
    data, output_dir = flags.pop("data", []), flags.pop("output_dir", suite.common.get("output_dir"))
    if answer_files and len(model_paths) > 1:
        raise InputError("--answers are of one model: give one --model, or leave it out")
    model_settings = dict(zip(["model_name_or_path"], model_paths, strict=False))
    answers_by_benchmark = {
        label: path for label, path in map(_split_label, answer_files) if label in map(_benchmark_name, suite.benchmarks)
    }
    if answers_by_benchmark:
        models: Mapping[str, Mapping[str, Any]] = {_default_label(model_paths[0]) if model_paths else "model": model_settings}
    elif answer_files:
        models = {label: {**model_settings, "answers": path} for label, path in _paths_by_label(answer_files).items()}
    elif model_paths:
        models = {label: {"model_name_or_path": path} for label, path in _paths_by_label(model_paths).items()}
    else:
        models = suite.models or {"model": {}}
    is_single_run = len(models) * len(suite.benchmarks) == 1
    runs, known_settings = [], config_fields(EvalConfig)
    for label, model_overrides in models.items():
        for name, benchmark_overrides in suite.benchmarks.items():
            values = {**suite.common, **model_overrides, **benchmark_overrides, **flags}
            if _benchmark_name(name) in answers_by_benchmark:
                values["answers"] = answers_by_benchmark[_benchmark_name(name)]
            if data:
                values["data"] = _data_path(data, _benchmark_name(name), len(suite.benchmarks))
            if output_dir is not None:
                values["output_dir"] = str(output_dir if is_single_run else Path(str(output_dir)) / label / _benchmark_name(name))
            for key in values:
                if new_name := renamed_field(key, known_settings):
                    raise InputError(renamed(key, new_name))
            benchmark_options = {k: values.pop(k) for k in list(values) if k not in known_settings and k != "config"} | dict(
                options.get(name, {})
            )
            runs.append(EvalRun(label, name, load(values), benchmark_options))
    return runs


def _benchmark_name(benchmark: str) -> str:
    return Path(benchmark).stem


def _paths_by_label(values: Sequence[str]) -> dict[str, str]:
    """Paths by label: what stands before `=`, else what the path itself says, with a number where two say the same."""
    labelled: dict[str, str] = {}
    for label, path in map(_split_label, values):
        label = label or _default_label(path)
        labelled[label if label not in labelled else f"{label}-{len(labelled) + 1}"] = path
    return labelled


def _split_label(value: str) -> tuple[str, str]:
    """`NAME=PATH` in its two parts; a path that exists is a path, whatever it holds."""
    label, separator, path = value.partition("=")
    return (label, path) if separator and not Path(value).exists() and re.fullmatch(r"[\w.-]+", label) else ("", value)


def _default_label(path: str) -> str:
    """A folder's name for a model: `runs/sft/model` is sft."""
    parts = [p for p in Path(path).parts if p not in ("/", "model", "policy", ".", "..")]
    stem = parts[-1] if parts else "model"
    return re.sub(r"[^\w.-]+", "-", Path(stem).stem if Path(path).is_file() else stem)


def _data_path(values: Sequence[str], benchmark: str, num_benchmarks: int) -> str:
    """A benchmark's data, of several benchmarks: `NAME=PATH`, else the folder of its name in the one folder that holds all."""
    paths_by_name = dict(map(_split_label, values))
    if benchmark in paths_by_name:
        return paths_by_name[benchmark]
    if "" in paths_by_name and num_benchmarks == 1:
        return paths_by_name[""]
    root = Path(paths_by_name.get("", ""))
    if "" in paths_by_name and root.is_dir():
        subfolders = {re.sub(r"\W|_", "", p.name).lower(): p for p in root.iterdir() if p.is_dir()}
        if (normalised := re.sub(r"\W|_", "", benchmark).lower()) in subfolders:
            return str(subfolders[normalised])
        raise InputError(f"--data {root} has no folder for {benchmark}: add --data {benchmark}=PATH")
    raise InputError(f"--data says nothing of {benchmark}: add --data {benchmark}=PATH")
