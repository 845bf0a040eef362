"""Shared parts of the studies: the demo's experiment per seed, cached results, tables over seeds.

A study takes `--seeds N` (0 to N-1), `--out DIR` and `--workers N`. It builds everything in DIR,
resumes where it was interrupted, and prints Markdown followed by one line of JSON. Intervals are
95% t-intervals over seeds. Models this small gain little from a second core, so each worker process
has one core and one experiment.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats

from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.config.loader import load_config
from mmrlhf.demo import data
from mmrlhf.demo.measure import score_scenes
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.demo.side_by_side import exit_after_parent
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.bundled import find, folder
from mmrlhf.models.policy import load_policy
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.types import RewardFunction
from mmrlhf.sft import sft

S = TypeVar("S")
T = TypeVar("T")

POLICY_BUDGET = {"per_device_train_batch_size": 24, "max_steps": 16}
"""Budget of a policy: a third of the demo's answers, because studies train dozens of policies."""
DIFFICULTIES = {"easier": 0.1, "demo": 0.28, "harder": 0.5}
"""Share of objects that are faded and partly occluded."""


def parse_args(description: str | None, **extra_arguments: Any) -> argparse.Namespace:
    """Parse the common arguments, and extra ones given as NAME={options of add_argument}."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for everything that is built and measured"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="experiments at a time, one core each")
    for name, options in extra_arguments.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


def run_and_report(args: argparse.Namespace, run: Callable[[argparse.Namespace], object], report: Callable[[], T]) -> T:
    """Run a study unless `--analyse` is given, and report; print an InputError as one sentence."""
    try:
        if not args.analyse:
            run(args)
        return report()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def save_figure(figure: Figure, directory: Path, name: str) -> Path:
    """Write a figure as SVG and PNG; return the path of the PNG."""
    for suffix in ("svg", "png"):
        buffer = io.BytesIO()
        metadata = {"Date": None} if suffix == "svg" else None
        figure.savefig(buffer, format=suffix, dpi=130, facecolor="white", metadata=metadata)
        write_atomic(directory / f"{name}.{suffix}", buffer.getvalue())
    return directory / f"{name}.png"


def run_parallel(tasks: Sequence[S], run: Callable[[S], T], num_workers: int) -> list[T]:
    """Return the result of `run`, a module-level function or a partial of one, per task.

    A single worker is this process.
    """
    if num_workers == 1:
        torch.set_num_threads(1)
        return [run(task) for task in tasks]
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=_begin_worker) as pool:
        return list(pool.map(run, tasks))


def _begin_worker() -> None:
    """Use one core; end with the study, also if it was killed: the next one needs the cores."""
    torch.set_num_threads(1)
    threading.Thread(target=exit_after_parent, daemon=True).start()


def claim_settings(directory: Path, settings: Mapping[str, Any], name: str = "settings") -> None:
    """Write a study's settings to NAME.json in its directory.

    Raises InputError if it holds others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    if not path.exists():
        write_atomic(path, json.dumps(settings, indent=1))
    elif changed := [name for name, value in json.loads(path.read_text()).items() if settings.get(name) != value]:
        raise InputError(f"{directory} holds a study with another {', '.join(changed)}: give another --out")


def claim_arguments(args: argparse.Namespace, chosen: Collection[str] = (), name: str = "settings") -> None:
    """Claim --out for the arguments on which results depend, as `claim_settings` does.

    `chosen` are those that say which results to compute.
    """
    left_out = {"out", "seeds", "workers", "analyse", *chosen}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key not in left_out}
    if "base" in settings:  # however its path is written
        settings["base"] = str(Path(args.base or folder("data") / "tiny_vlm").resolve())
    claim_settings(args.out, settings, name)


def cached_result(output_dir: Path, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return a result from its file, or compute and write it."""
    path = output_dir / "cells" / f"{name}.json"
    if not path.exists():
        start_time = time.time()
        result = compute()
        write_atomic(path, json.dumps(result | {"seconds": round(time.time() - start_time, 1)}))
        print(f"{name}: {time.time() - start_time:.0f} s", flush=True)
    return dict(json.loads(path.read_text()))


def cached_results(
    experiment: Experiment, study: str, settings: Iterable[str], measure: Callable[[Experiment, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return one result per setting of a study."""
    return [
        cached_result(experiment.output_dir, f"{study}-{experiment.seed}-{slug(setting)}", partial(measure, experiment, setting))
        for setting in settings
    ]


def slug(text: str) -> str:
    """Return a text in the form of a file name."""
    return "".join(c if c.isalnum() else "_" for c in text)


@dataclass(frozen=True)
class Experiment:
    """The demo with one seed at one difficulty. Stages run on first use, in `output_dir`.

    base_path: the model that SFT starts from, by default the bundled one.
    data_overrides: further settings of the data.
    """

    output_dir: Path
    seed: int
    difficulty: str = "demo"
    fact_recall: float = 0.8
    fact_error_rate: float = 0.05
    base_path: str | None = None
    data_overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        return self.output_dir / f"{self.difficulty}-{self.seed}"

    @cached_property
    def data_config(self) -> ScenesConfig:
        overrides = {
            "seed": self.seed,
            "occluded_share": DIFFICULTIES[self.difficulty],
            "pair_scenes": 4000,
            "held_out_pairs": 1000,
            "fact_recall": self.fact_recall,
            "fact_error_rate": self.fact_error_rate,
            **self.data_overrides,
        }
        return load_config(ScenesConfig, find("configs", "demo/scenes"), overrides)

    @cached_property
    def sft_path(self) -> str:
        """The fine-tuned model, trained as in the demo."""
        directory = self.directory / "sft"
        if not (directory / "finished.json").exists():
            base_path = self.base_path or str(folder("data") / "tiny_vlm")
            config = stage_config(SFTConfig, self.seed, directory, model_name_or_path=base_path)
            sft(config, data.build_sft_rows(self.data_config, self.data_config.cooccurrence_bias))
        return str(directory / "model")

    @cached_property
    def pairs(self) -> tuple[list[Preference], list[Preference]]:
        """Training pairs and held-out pairs."""
        return data.build_preference_pairs(self.data_config, self.sft_path, self.directory / "pairs.jsonl")

    def train_reward(self, name: str, transform: Callable[[Preference], Preference] | None = None, **overrides: Any) -> str:
        """Train a reward model on the pairs and return its directory.

        transform: applied to each pair, to change its facts.
        """
        directory = self.directory / f"reward_{name}"
        if not (directory / "finished.json").exists():
            pair_splits = [[transform(p) for p in pairs] if transform else pairs for pairs in self.pairs]
            config = stage_config(RewardConfig, self.seed, directory, model_name_or_path=self.sft_path, **overrides)
            train_reward_model(config, *pair_splits)
        return str(directory)

    def train_policy(
        self,
        name: str,
        prompts: Sequence[Example] | None = None,
        extra_rewards: dict[str, RewardFunction] | None = None,
        **overrides: Any,
    ) -> str:
        """Train a policy, by default on the demo's prompts, and return its adapter's directory."""
        directory = self.directory / f"ppo_{name}"
        if not (directory / "finished.json").exists():
            settings = {"min_probe_detection_rate": 0, "allow_worse_reward_model": True, **POLICY_BUDGET, **overrides}
            config = stage_config(PPOConfig, self.seed, directory, model_name_or_path=self.sft_path, **settings)
            ppo(config, data.build_rl_prompts(self.data_config) if prompts is None else prompts, None, extra_rewards)
        return str(directory / "policy")

    def evaluate(self, adapter_path: str | None, num_scenes: int = 300) -> dict[str, float]:
        """Return the metrics of the demo's table for greedy answers on held-out scenes."""
        rows = load_benchmark("scenes").module.prompts("held_out", num_scenes)
        metrics, _ = self.greedy_metrics(adapter_path, rows)
        return metrics

    def greedy_metrics(self, adapter_path: str | None, rows: Sequence[Example]) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Answer held-out rows greedily. Return metrics and answers by row id."""
        with load_policy(self.sft_path, adapter_path) as vlm:
            answers = {e.id: texts for e, texts in generate_batches(vlm, rows, data.GREEDY, batch_size=100)}
        metrics = score_scenes(rows, answers, self.seed)["held_out"]
        return {k: v for k, v in metrics.items() if isinstance(v, float)}, answers


# ---- tables over seeds ---------------------------------------------------------------------------


def mean_and_half_width(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean and the half width of its t-interval, which is NaN for a single value."""
    array = np.array(list(values), dtype=float)
    quantile = 0.5 + confidence / 2
    half_width = float(stats.t.ppf(quantile, len(array) - 1) * stats.sem(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), half_width


def seeds_needed(deviation: float, difference: float, confidence: float = 0.95, power: float = 0.8) -> int:
    """Return the seeds from which a paired t-test finds a mean difference with this power.

    `deviation` is the standard deviation over seeds of the difference within a seed.
    """
    for num_seeds in range(2, 10_000):
        threshold = stats.t.ppf(0.5 + confidence / 2, num_seeds - 1)
        shift = difference / deviation * num_seeds**0.5
        miss = stats.nct.cdf(threshold, num_seeds - 1, shift)
        if not miss > 1 - power:  # NaN where the shift is so large that nothing is missed
            return num_seeds
    return 10_000


def format_mean(values: Iterable[float], as_percent: bool = False, sign: str = "", confidence: float = 0.95) -> str:
    """Return "mean ± half width", or the mean of a single value, or "-" without values."""
    samples = list(values)
    scale, digits = (100, 1) if as_percent else (1, 2)
    if not samples:
        return "-"
    mean, half_width = mean_and_half_width(samples, confidence)
    return f"{mean * scale:{sign}.{digits}f}" + (f" ± {half_width * scale:.{digits}f}" if len(samples) > 1 else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
