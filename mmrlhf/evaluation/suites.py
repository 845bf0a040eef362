"""Several benchmarks on several models in one call: from the command line, or from a YAML file.

    benchmarks:
      pope: {data: POPE, image_folder: val2014}
      chair: {data: annotations, lineage: a, limit: 500}
    models:
      base: {model: runs/sft/model}
      tuned: {model: runs/sft/model, adapter_path: runs/ppo/policy}
    response_length: 64

Settings outside `benchmarks` and `models` apply to all of them. Flags override the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.config import EvalConfig
from mmrlhf.config.loader import config_fields, read_yaml, renamed, renamed_field
from mmrlhf.records import InputError

ALIASES = {"model": "model_name_or_path", "adapter": "adapter_path", "out": "output_dir"}
"""Short names that settings may have in a suite."""
LoadConfig = Callable[[dict[str, Any]], EvalConfig]
"""Validates settings; raises InputError."""


@dataclass(frozen=True)
class Suite:
    """Settings by benchmark, by model, and common to all."""

    benchmarks: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    common: Mapping[str, Any] = field(default_factory=dict)


class EvalRun(NamedTuple):
    """One benchmark on one model: the label of the model, and the arguments of `evaluate`."""

    model: str
    benchmark: str
    config: EvalConfig
    options: dict[str, Any]


def read_suite(path: Path) -> Suite:
    """Read a suite from a YAML file. Raises InputError."""
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
    """Make a suite of settings that may have their short names."""
    return Suite(
        {k: _expand_aliases(v) for k, v in benchmarks.items()},
        {k: _expand_aliases(v) for k, v in models.items()},
        _expand_aliases(common),
    )


def _expand_aliases(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {ALIASES.get(str(k), str(k)): v for k, v in values.items()}


def expand_runs(
    suite: Suite, flags: Mapping[str, Any], options: Mapping[str, Mapping[str, Any]], load: LoadConfig
) -> list[EvalRun]:
    """Return a run of every benchmark on every model, each with its own output directory.

    A single run writes to --out itself, several write to --out/MODEL/BENCHMARK. flags: settings of
    the command line; model_name_or_path, answers and data may be lists, where `LABEL=PATH` gives
    the model or the benchmark of a path. options: the benchmarks' own options, by benchmark. Raises
    InputError.
    """
    flags = dict(flags)
    model_paths, answer_files = flags.pop("model_name_or_path", []), flags.pop("answers", [])
    data_paths, output_dir = flags.pop("data", []), flags.pop("output_dir", suite.common.get("output_dir"))
    if answer_files and len(model_paths) > 1:
        raise InputError("--answers are of one model: give one --model, or leave it out")
    models, answers_by_benchmark = _expand_models(suite, model_paths, answer_files)
    is_single_run = len(models) * len(suite.benchmarks) == 1
    runs = []
    for label, model_settings in models.items():
        for benchmark, benchmark_settings in suite.benchmarks.items():
            name = _benchmark_name(benchmark)
            values = {**suite.common, **model_settings, **benchmark_settings, **flags}
            if name in answers_by_benchmark:
                values["answers"] = answers_by_benchmark[name]
            if data_paths:
                values["data"] = data_path(data_paths, name, len(suite.benchmarks))
            if output_dir is not None:
                values["output_dir"] = str(output_dir if is_single_run else Path(str(output_dir)) / label / name)
            settings, own_options = split_options(values)
            own_options |= options.get(benchmark, {})
            runs.append(EvalRun(label, benchmark, load(settings), own_options))
    return runs


def _expand_models(
    suite: Suite, model_paths: Sequence[str], answer_files: Sequence[str]
) -> tuple[Mapping[str, Mapping[str, Any]], dict[str, str]]:
    """Return settings by model label, and files of answers by benchmark.

    The labels of --answers name the benchmarks of one model, or else models.
    """
    model_settings = {"model_name_or_path": model_paths[0]} if model_paths else {}
    benchmark_names = [_benchmark_name(benchmark) for benchmark in suite.benchmarks]
    labelled_answers = [split_label(value) for value in answer_files]
    answers_by_benchmark = {label: path for label, path in labelled_answers if label in benchmark_names}
    if answers_by_benchmark:
        label = _default_label(model_paths[0]) if model_paths else "model"
        return {label: model_settings}, answers_by_benchmark
    if answer_files:
        return {label: {**model_settings, "answers": path} for label, path in _paths_by_label(answer_files).items()}, {}
    if model_paths:
        return {label: {"model_name_or_path": path} for label, path in _paths_by_label(model_paths).items()}, {}
    return suite.models or {"model": {}}, {}


def split_options(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split settings of EvalConfig from a benchmark's own options.

    Raises InputError for a setting's old name.
    """
    known_settings = config_fields(EvalConfig)
    for key in values:
        if new_name := renamed_field(key, known_settings):
            raise InputError(renamed(key, new_name))
    settings = {key: value for key, value in values.items() if key in known_settings or key == "config"}
    return settings, {key: value for key, value in values.items() if key not in settings}


def _benchmark_name(benchmark: str) -> str:
    return Path(benchmark).stem


def _paths_by_label(values: Sequence[str]) -> dict[str, str]:
    """Return paths by label: given as `LABEL=PATH`, or else derived from the path.

    A number distinguishes equal labels.
    """
    labelled: dict[str, str] = {}
    for label, path in map(split_label, values):
        label = label or _default_label(path)
        labelled[label if label not in labelled else f"{label}-{len(labelled) + 1}"] = path
    return labelled


def split_label(value: str) -> tuple[str, str]:
    """Return label and path of `LABEL=PATH`; the label is empty if there is none, or if the whole
    value is a path."""
    label, separator, path = value.partition("=")
    if separator and re.fullmatch(r"[\w.-]+", label) and not Path(value).exists():
        return label, path
    return "", value


def _default_label(path: str) -> str:
    """Return a label for a model or a file of answers: `runs/sft/model` is sft."""
    parts = [part for part in Path(path).parts if part not in ("/", "model", "policy", ".", "..")]
    label = parts[-1] if parts else "model"
    return re.sub(r"[^\w.-]+", "-", Path(label).stem if Path(path).is_file() else label)


def data_path(values: Sequence[str], benchmark: str, num_benchmarks: int) -> str:
    """Return a benchmark's data: its `NAME=PATH`, or else the subfolder with its name in the given
    folder."""
    paths_by_name = dict(map(split_label, values))
    if benchmark in paths_by_name:
        return paths_by_name[benchmark]
    if "" not in paths_by_name:
        raise InputError(f"--data does not name {benchmark}: add --data {benchmark}=PATH")
    root = Path(paths_by_name[""])
    if num_benchmarks == 1:
        return paths_by_name[""]
    if not root.is_dir():
        raise InputError(f"--data does not name {benchmark}: add --data {benchmark}=PATH")
    subfolders = {_normalise(path.name): path for path in root.iterdir() if path.is_dir()}
    if _normalise(benchmark) not in subfolders:
        raise InputError(f"--data {root} has no folder for {benchmark}: add --data {benchmark}=PATH")
    return str(subfolders[_normalise(benchmark)])


def _normalise(name: str) -> str:
    """Return a name in lower case without punctuation, so that MMHal-Bench is mmhal_bench."""
    return re.sub(r"\W|_", "", name).lower()
