"""The benchmarks of `--eval_benchmarks` in training, opened before the model is loaded. No torch.

    eval_benchmarks: pope,scenes          names, or a suite (`evaluation.suites`) with options
    eval_data: pope=POPE,scenes=selection
    eval_image_folder: pope=val2014,amber=AMBER/image

Wrong names, data or metrics are refused here: the names of a benchmark's metrics are determined by
scoring empty answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mmrlhf.config import EvalConfig, PolicyEvalConfig, RewardTermsConfig
from mmrlhf.config.base import SamplingConfig
from mmrlhf.config.loader import load_config, suggestion
from mmrlhf.evaluation.benchmark import Benchmark, Prediction, Task, first_valid, load_benchmark
from mmrlhf.evaluation.diversity import MIN_MEAN_WORDS
from mmrlhf.evaluation.predict import require_images, require_prompts
from mmrlhf.evaluation.scoring import compute_metrics, open_task, score_predictions
from mmrlhf.evaluation.suites import Suite, data_path, make_suite, read_suite, split_label, split_options
from mmrlhf.files.inputs import content_digest, reward_function_files
from mmrlhf.metrics.diversity import distinct_n, whole_folds
from mmrlhf.metrics.intervals import Interval, mean_interval
from mmrlhf.records import InputError
from mmrlhf.report.differences import better_direction
from mmrlhf.text.answer_parsing import leading_yes_no
from mmrlhf.text.word_counts import count_words

DEFAULT_EVAL_STEPS = 20
SUITE_SETTINGS = ("data", "image_folder", "limit", "seed", "batch_size", *SamplingConfig.__dataclass_fields__)
"""Settings of `mmrlhf eval` that a suite may set here; the others choose another model, or a
judge."""
TRAINING_METRIC = re.compile(
    r"(objective|rewards|hacking|claims|verdicts|policy|critic|loss|val)/.*|(.*[/_])?(rewards?|fact_rm)|scores?|kl|loss"
)
"""Prefixes of metrics that are measured on the training answers, or by the reward."""


@dataclass(frozen=True)
class PolicyBenchmark:
    """A benchmark with its examples, its settings, and the names of its metrics.

    `name` is the prefix of its metrics; `hashes` are those of its data by file name.
    """

    name: str
    benchmark: Benchmark
    task: Task
    config: EvalConfig
    hashes: Mapping[str, str]
    metric_names: tuple[str, ...] = ()

    def score(self, answers: Mapping[str, list[str]]) -> dict[str, Any]:
        """Return a row of eval.jsonl for answers by example id: the metrics with their intervals.

        A metric that is undefined is None.
        """
        predictions = [Prediction(id_, list(answers[id_])) for id_ in self.task.examples]
        rows = score_predictions(self.benchmark, self.task, predictions)
        metrics, _ = compute_metrics(self.benchmark, self.task, rows)
        main = {"headline": self.headline, "direction": self.benchmark.direction}
        # A benchmark's own figure of the same name comes first.
        flat = {**answer_metrics(list(answers.values())), **flat_metrics(metrics)}
        return {"benchmark": self.name, "n": len(first_valid(rows)), **main, "metrics": flat}

    @property
    def headline(self) -> str:
        """The main metric's name, as in `metric_names`; of several parts, their mean."""
        headline = self.benchmark.headline
        parts = [name for name in self.metric_names if name.split("/")[-1] == headline]
        return next((name for name in (headline, f"mean/{headline}", *parts) if name in parts), headline)


ANSWER_METRICS = ("mean_length", "yes_rate", "distinct_2")


def answer_metrics(answers: Sequence[Sequence[str]]) -> dict[str, Interval | None]:
    """Return metrics of the answers to several prompts that do not need the truth.

    They are the length in words, the share of yes among answers that begin with yes or no (None if
    most do not), and distinct bigrams (None if answers are too short), of first answers only.
    """
    texts = [str(texts[0]) for texts in answers]
    said = [word for text in texts if (word := leading_yes_no(text))]
    lengths = [count_words(text) for text in texts]
    metrics: dict[str, Interval | None] = dict.fromkeys(ANSWER_METRICS)
    metrics["mean_length"] = mean_interval(lengths)
    if 2 * len(said) > len(texts):
        metrics["yes_rate"] = mean_interval([word == "yes" for word in said])
    if fmean(lengths) >= MIN_MEAN_WORDS:
        metrics["distinct_2"] = mean_interval([distinct_n(fold, 2) for fold in whole_folds(texts)])
    return metrics


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, Interval | None]:
    """Return nested metrics of both modes as `part/metric`; where both have one, it is `robust`.

    A part that all of them share, such as the only split, is left out of their names.
    """
    flat: dict[str, Interval | None] = {}
    for mode in ("official", "robust"):
        flat |= dict(_leaves(metrics.get(mode) or {}))
    parts = {name.rpartition("/")[0].partition("/")[0] for name in flat}
    only_part = f"{parts.pop()}/" if len(parts) == 1 else ""
    return {name.removeprefix(only_part): value for name, value in flat.items()}


def _leaves(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Interval | None]]:
    for name, value in metrics.items():
        if value is None or "value" in value:
            yield f"{prefix}{name}", value
        else:
            yield from _leaves(value, f"{prefix}{name}/")


# ---- opening them --------------------------------------------------------------------------------


def open_benchmarks(config: PolicyEvalConfig) -> list[PolicyBenchmark]:
    """Open the benchmarks of a run, whose names, data and examples are checked.

    Raises InputError if one does not exist, cannot run during training, or lacks its data.
    """
    if config.eval_benchmarks is None:
        return []
    suite = _read_suite(config.eval_benchmarks)
    benchmarks: dict[str, tuple[Benchmark, Mapping[str, Any]]] = {}
    for file_or_name, suite_settings in suite.benchmarks.items():
        name, benchmark = Path(file_or_name).stem, load_benchmark(file_or_name)
        if name in benchmarks:
            raise InputError(f"eval_benchmarks names two benchmarks {name}: leave one out")
        _refuse_unusable(config, benchmark, name)
        benchmarks[name] = benchmark, suite_settings
    opened = []
    for name, (benchmark, suite_settings) in benchmarks.items():
        try:
            opened.append(_open(config, suite, benchmark, name, suite_settings))
        except InputError as error:
            # In training, --data is the dataset.
            message = re.sub(r"--(data|image_folder)\b", r"--eval_\1", str(error))
            raise InputError(f"eval_benchmarks: {message}" if name in message else f"eval_benchmarks {name}: {message}") from None
    return opened


def _read_suite(value: str) -> Suite:
    if not value.endswith((".yaml", ".yml")):
        names = [name.strip() for name in value.split(",")]
        if not all(names):
            raise InputError(f"eval_benchmarks {value!r} has an empty name: give names of `mmrlhf eval`, separated by commas")
        return make_suite({name: {} for name in names}, {}, {})
    suite = read_suite(Path(value))
    for settings in (suite.common, *suite.benchmarks.values()):
        known, _ = split_options(settings)
        if other := next((name for name in known if name not in SUITE_SETTINGS), None):
            raise InputError(f"{value}: training evaluates its own policy, without {other}: leave it out")
    if suite.models:
        raise InputError(f"{value}: training evaluates its own policy: leave `models` out")
    return suite


def _refuse_unusable(config: PolicyEvalConfig, benchmark: Benchmark, name: str) -> None:
    """Refuse benchmarks that ask a judge or a reward model, and files of reward functions."""
    if benchmark.uses_judge or benchmark.has_pairs:
        asked = "asks a judge" if benchmark.uses_judge else "compares given answers"
        raise InputError(f"eval_benchmarks {name} {asked}: measure it after the run, with `mmrlhf eval {name}`")
    reward_terms = config.reward_terms if isinstance(config, RewardTermsConfig) else ""
    for file in reward_function_files(reward_terms):
        module_file = str(benchmark.module.__file__)
        if Path(file).is_file() and Path(file).samefile(module_file):
            raise InputError(
                f"eval_benchmarks {name} is the file of a reward function, {file}: what is optimised must not evaluate"
            )


def _open(
    config: PolicyEvalConfig, suite: Suite, benchmark: Benchmark, name: str, suite_settings: Mapping[str, Any]
) -> PolicyBenchmark:
    folder = _image_folder_of(config, suite, name)
    flags = {"limit": config.eval_limit, "image_folder": folder, "data": _data_of(config, suite, name)}
    values = {
        "data": benchmark.selection_data,
        "response_length": config.response_length,
        **suite.common,
        **suite_settings,
        **{key: value for key, value in flags.items() if value is not None},
        "output_dir": config.output_dir,
    }
    settings, options = split_options({key: value for key, value in values.items() if value is not None})
    eval_config = load_config(EvalConfig, None, settings)
    task, hashes = open_task(benchmark, eval_config, options)
    _refuse_training_data(config, hashes)
    examples = list(task.examples.values())
    if not examples:
        raise InputError("there are no examples: correct --data")
    require_prompts(benchmark, examples)
    require_images(examples)
    opened = PolicyBenchmark(name, benchmark, task, eval_config, hashes)
    empty_answers = dict.fromkeys(task.examples, [""] * eval_config.num_generations)
    names = tuple(opened.score(empty_answers)["metrics"])
    return PolicyBenchmark(name, benchmark, task, eval_config, hashes, names)


def _data_of(config: PolicyEvalConfig, suite: Suite, name: str) -> str | None:
    """Return a benchmark's data in `eval_data`, None if it has none there."""
    values, paths_by_name = _labelled(config, suite, "eval_data")
    if name not in paths_by_name and "" not in paths_by_name:
        return None
    return data_path(values, name, len(suite.benchmarks))


def _image_folder_of(config: PolicyEvalConfig, suite: Suite, name: str) -> str | None:
    """Return a benchmark's folder in `eval_image_folder`: its own, else the common one."""
    _, folders_by_name = _labelled(config, suite, "eval_image_folder")
    return folders_by_name.get(name, folders_by_name.get(""))


def _labelled(config: PolicyEvalConfig, suite: Suite, setting: str) -> tuple[list[str], dict[str, str]]:
    """Return the paths in a setting by benchmark, "" for a path without a benchmark.

    A split at commas before `NAME=` keeps lists of splits whole.
    """
    given = getattr(config, setting)
    values = [] if given is None else re.split(r",(?=[\w.-]+=)", given)
    paths_by_name = dict(map(split_label, values))
    names = [Path(benchmark).stem for benchmark in suite.benchmarks]
    if unknown := next((label for label in paths_by_name if label and label not in names), None):
        raise InputError(f"{setting} names {unknown}, which is not one of eval_benchmarks: {suggestion(unknown, names)}")
    return values, paths_by_name


def _refuse_training_data(config: PolicyEvalConfig, hashes: Mapping[str, str]) -> None:
    """Raise InputError if a file of the data is the training dataset."""
    dataset = Path(config.dataset_name)
    if dataset.is_file() and content_digest(str(dataset)) in hashes.values():
        raise InputError(f"its data is {dataset}, which is trained on: give other rows, which are in no other set either")


# ---- the metric that chooses ---------------------------------------------------------------------


def check_eval_settings(config: PolicyEvalConfig, has_function: bool) -> None:
    """Raise InputError for evaluation settings without the benchmarks to which they apply."""
    if config.eval_benchmarks is None:
        about_data = ("eval_data", "eval_image_folder", "eval_limit")
        needless = about_data if has_function else (*about_data, "eval_steps", "metric_for_best_model")
        if given := next((name for name in needless if getattr(config, name) is not None), None):
            raise InputError(
                f"{given} is about benchmarks, and there are none: add eval_benchmarks (such as scenes), or leave it out"
            )
    if config.metric_for_best_model is None:
        if config.load_best_model_at_end:
            raise InputError("load_best_model_at_end needs metric_for_best_model: add it, as BENCHMARK/METRIC")
        if config.greater_is_better is not None:
            raise InputError("greater_is_better is about metric_for_best_model, which is not given: add it, or leave both out")


def best_metric(
    config: PolicyEvalConfig,
    benchmarks: Sequence[PolicyBenchmark],
    has_function: bool,
    held_out_metrics: Mapping[str, bool],
) -> tuple[str, bool] | None:
    """Return the name of metric_for_best_model and whether more of it is better; None without one.

    Of a caller's function, only the metrics `held_out_metrics` are known before it is called.

    Raises InputError for a metric of the reward, one that no benchmark gives, and one whose better
    direction is not known.
    """
    if config.metric_for_best_model is None:
        return None
    name = config.metric_for_best_model.removeprefix("eval/")
    if name in held_out_metrics:
        return name, held_out_metrics[name]
    given = {f"{item.name}/{metric}": item for item in benchmarks for metric in item.metric_names}
    if name not in given:
        if TRAINING_METRIC.fullmatch(name):
            raise InputError(
                f"metric_for_best_model {name} is measured by the reward, or on answers that are trained on, and what is "
                f"optimised must not choose: give a metric of eval_benchmarks{_such_as(benchmarks)}"
            )
        owner = next((item for item in benchmarks if name.startswith(f"{item.name}/")), None)
        if owner is not None or not has_function:
            gives = f"{owner.name} does not give it" if owner else "no benchmark gives it"
            raise InputError(f"metric_for_best_model {name}: {gives}: {suggestion(name, given)}")
    metric, owner = name.split("/")[-1], given.get(name)
    stated = (owner.benchmark.headline, owner.benchmark.direction) if owner else ("", "")
    direction = better_direction(metric, *stated)
    if config.greater_is_better is None and not direction:
        raise InputError(
            f"metric_for_best_model {name}: it is not known whether more of it is better: add greater_is_better true or false"
        )
    return name, config.greater_is_better if config.greater_is_better is not None else direction == "higher"


def _such_as(benchmarks: Sequence[PolicyBenchmark]) -> str:
    return f", such as {benchmarks[0].name}/{benchmarks[0].headline}" if benchmarks else ""
