"""A model card's record of the runs that produced a model, read from their directories."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.config import DPOConfig, FeedbackConfig, PPOConfig, RewardConfig, RFTConfig, SFTConfig
from mmrlhf.config.loader import current_names, read_yaml, stage_of
from mmrlhf.evaluation.policy_benchmarks import flat_metrics
from mmrlhf.evaluation.results import Result
from mmrlhf.files.hub_names import is_hub_id
from mmrlhf.files.inputs import CONTENT_FIELDS
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.files.rows import is_finite_number
from mmrlhf.metrics.calibration import proportion
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.training.run_inputs import RESUMABLE_CHANGES

STAGE_CONFIGS: Mapping[str, type] = {
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "rft": RFTConfig,
    "ppo": PPOConfig,
    "feedback": FeedbackConfig,
}
DATA_FIELDS = (
    "dataset_name", "eval_dataset_name", "ptx_dataset_name", "human_dataset_name", "facts_file", "reward_model_path",
)  # fmt: skip
"""Settings that name a run's training data."""
OTHER_PATHS = ("image_folder", "eval_image_folder", "eval_data", "truth_file", "rollout_engine", "judge")
"""Settings that name locations, here or on servers, but no training data."""

RUN_FILES = ("config.yaml", "metrics.jsonl")
"""Files that identify a run's directory: other programs also write a config.yaml."""


@dataclass(frozen=True)
class DataFile:
    """A file that a run read: its name without folders, rows and sha256, None if unknown."""

    setting: str
    name: str
    num_rows: int | None
    sha256: str | None


@dataclass(frozen=True)
class Figure:
    """A value with its 95% interval, None if there is none."""

    name: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """Figures of one benchmark, the main one first.

    direction: `higher` or `lower`, the better direction of the main figure. note: their origin.
    """

    benchmark: str
    num_examples: int | None
    direction: str
    figures: Sequence[Figure]
    note: str


@dataclass(frozen=True)
class TrainingRecord:
    """One run: its stage, data, steps, and the settings that differ from their defaults."""

    stage: str
    path: Path
    model: str
    """The model from which it started, as named in its settings."""
    data: Sequence[DataFile]
    num_steps: int | None
    settings: Mapping[str, str]


# ---- runs ----------------------------------------------------------------------------------------


def read_lineage(*folders: str | Path | None) -> list[TrainingRecord]:
    """Return the runs that led to the model and the adapter in some folders, the first one first.

    A folder that no run wrote has none. Raises InputError for unreadable settings.
    """
    runs: list[Path] = []
    seen: set[Path] = set()  # damaged settings may name each other
    for folder in folders:
        _add_runs(folder, runs, seen)
    return [read_record(run) for run in runs]


def _add_runs(folder: str | Path | None, runs: list[Path], seen: set[Path]) -> None:
    """Add the runs that led to a folder's model, its own last."""
    run = None if folder is None else run_of(Path(folder))
    if run is None or run in seen:
        return
    seen.add(run)
    settings = read_yaml(run / "config.yaml")
    for origin in (settings.get("model_name_or_path"), settings.get("adapter_path")):
        _add_runs(origin if isinstance(origin, str) else None, runs, seen)
    runs.append(run)


def run_of(folder: Path) -> Path | None:
    """Return the run whose result, such as its folder `policy`, is in a folder; None without one.

    A reward model is in the run's own folder.
    """
    folder = folder.resolve()
    candidates = (folder, folder.parent) if folder.is_dir() else ()
    return next((path for path in candidates if all((path / name).is_file() for name in RUN_FILES)), None)


def read_record(run: Path) -> TrainingRecord:
    """Read a run's directory. Raises InputError for settings that cannot be read."""
    settings = {str(name): value for name, value in current_names(read_yaml(run / "config.yaml")).items()}
    stage = stage_of(settings)
    inputs = _mapping(_read_json(run / "inputs.json").get("inputs"))
    return TrainingRecord(
        stage=stage,
        path=run,
        model=str(settings.get("model_name_or_path", "")),
        data=_data_files(settings, inputs, _mapping(_read_json(run / "rows.json").get("checks")).get("num_rows")),
        num_steps=_integer(_read_json(run / "finished.json").get("steps")),
        settings=_changed_settings(settings, STAGE_CONFIGS[stage]) if stage in STAGE_CONFIGS else {},
    )


def _data_files(settings: Mapping[str, Any], inputs: Mapping[str, Any], num_rows: Any) -> list[DataFile]:
    names = {name: str(settings[name]) for name in DATA_FIELDS if settings.get(name)}
    names |= {name: name.removeprefix("reward function file ") for name in inputs if name.startswith("reward function file ")}
    files = []
    for setting, path in names.items():
        sha256 = _mapping(inputs.get(setting)).get("sha256")
        rows = _integer(num_rows) if setting == "dataset_name" else None
        label = "reward function" if setting.startswith("reward function file ") else setting
        files.append(DataFile(label, without_folders(path), rows, sha256 if isinstance(sha256, str) else None))
    return files


def _changed_settings(settings: Mapping[str, Any], config: type) -> dict[str, str]:
    """Return the settings that differ from a stage's defaults, without paths and settings that do
    not affect training."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    left_out = {*CONTENT_FIELDS, *DATA_FIELDS, *OTHER_PATHS, *RESUMABLE_CHANGES} - {"max_length"}
    changed = {k: v for k, v in settings.items() if k not in left_out and v is not None and v != defaults.get(k)}
    changed = {k: v for k, v in changed.items() if "://" not in str(v)}  # addresses may hold passwords
    return {name: without_folders(str(value)) for name, value in changed.items()}


def without_folders(text: str) -> str:
    """Return a setting's text with the names of files only, because folders are private.

    A Hub id keeps its owner.
    """
    return text if is_hub_id(text) else re.sub(r"[^\s,:;=*+]*/(?=[^\s,:;=*+/])", "", text.rstrip("/"))


def hub_base(model: str, records: Iterable[TrainingRecord]) -> str | None:
    """Return the Hub id of the original base model; None if it is not on the Hub."""
    first = next((record.model for record in records), model)
    return first if is_hub_id(first) else None


# ---- figures -------------------------------------------------------------------------------------


def policy_evaluations(record: TrainingRecord, folder: Path) -> list[Evaluation]:
    """Return a run's own evaluation of the policy in one of its folders, if there is one.

    It is that of the last step, or of the best one.
    """
    finished, best = _read_json(record.path / "finished.json"), _read_json(folder / "best.json")
    step = next(
        (s for s in (best.get("step"), finished.get("policy_step"), finished.get("steps")) if _integer(s) is not None), None
    )
    path = record.path / "eval.jsonl"
    rows = read_jsonl(path) if path.is_file() and step is not None else []
    note = f"by the {record.stage} run itself, after step {step}"
    return [
        Evaluation(
            str(row.get("benchmark")),
            _integer(row.get("n")),
            str(row.get("direction")),
            _figures(_mapping(row.get("metrics")), str(row.get("headline"))),
            note,
        )
        for row in rows
        if row.get("step") == step
    ]


def result_evaluation(result: Result) -> Evaluation:
    """Return the figures of a folder that eval wrote."""
    summary = result.summary
    headline, metrics = str(summary["headline"]), _flat(summary["metrics"])
    main = next((name for name in metrics if name.split("/")[-1] == headline), headline)
    limit = f", the first {summary['limit']} rows" if summary.get("limit") else ""
    judge = ", with a judge" if summary.get("judge") else ""
    note = f"with mmrlhf eval, version {summary['version']} of the benchmark{limit}{judge}"
    benchmark = without_folders(result.benchmark)
    return Evaluation(benchmark, _integer(summary.get("n")), str(summary["direction"]), _figures(metrics, main), note)


def reward_model_evaluations(run: Path, metadata: Mapping[str, Any]) -> list[Evaluation]:
    """Return the accuracy on held-out pairs and Youden's J recorded by reward, with intervals.

    The accuracy's interval is Wilson's, or by bootstrap over images if comparisons share one. A J
    that was recorded without an interval has none.
    """
    evaluations = []
    finished = _read_json(run / "finished.json")
    right, clusters = finished.get("right"), finished.get("clusters")
    if isinstance(right, list) and right and all(value in (0, 1) for value in right):
        has_clusters = isinstance(clusters, list) and len(clusters) == len(right) and all(isinstance(c, int) for c in clusters)
        accuracy: Any = proportion(np.array(right) > 0, clusters if has_clusters else None)
        figure = Figure("accuracy", accuracy["value"], (accuracy["low"], accuracy["high"]))
        evaluations.append(Evaluation("held-out pairs", len(right), "higher", [figure], "by the reward run itself"))
    judged = _mapping(metadata.get("j"))
    rates_by_kind = {kind: _mapping(rates) for kind, rates in _mapping(judged.get("after")).items()}
    figures = _figures(
        {"J" if kind == ALL_KINDS else f"J, {kind}": {**rates, "value": rates.get("j")} for kind, rates in rates_by_kind.items()}
        | {"change of J in training": judged.get("change")},
        "J",
    )
    num_false, num_true = (_integer(rates_by_kind.get(ALL_KINDS, {}).get(name)) for name in ("n_false", "n_true"))
    num_claims = None if num_false is None or num_true is None else num_false + num_true
    if figures:
        note = "by the reward run itself: J is the share of false claims that lower the score, minus that of true ones"
        evaluations.append(Evaluation(str(judged.get("measured_on")), num_claims, "higher", figures, note))
    return evaluations


def _figures(metrics: Mapping[str, Any], headline: str) -> list[Figure]:
    """Return the finite metrics, the main one first."""
    figures = []
    for name in sorted(metrics, key=lambda name: name != headline):
        value, low, high = (_number(_mapping(metrics[name]).get(key)) for key in ("value", "low", "high"))
        if value is not None:
            figures.append(Figure(name, value, None if low is None or high is None else (low, high)))
    return figures


def _flat(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return nested metrics by `part/metric`, without damaged ones."""
    try:
        return flat_metrics(metrics)
    except (TypeError, AttributeError, RecursionError):
        return {}


# ---- values of files -----------------------------------------------------------------------------


def _read_json(path: Path) -> Mapping[str, Any]:
    """Return a file's object; empty if it is missing or damaged."""
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    """Return a finite number; None for anything else."""
    return float(value) if is_finite_number(value) else None
