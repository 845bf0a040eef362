"""What the studies share: the demo's world built once for each seed, cells of which each is kept when it is done, and tables over seeds.

A study takes `--seeds N` (0 to N-1), `--out DIR` and `--workers N`, builds all it needs in DIR, goes on where it was killed, prints Markdown, and
one line of JSON last. Intervals are 95% t-intervals over seeds. Models this small gain little from a second core: each worker has one,
and a world.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import stats

from mmrlhf import scenes
from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.config_loader import load_config
from mmrlhf.demo import data
from mmrlhf.demo.measure import score_scenes
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.bundled import find, folder
from mmrlhf.models.policy import load_policy
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.types import RewardFunction
from mmrlhf.sft import sft

POLICY_BUDGET = {"per_device_train_batch_size": 24, "max_steps": 16}
"""Of a policy: a third of the demo's answers, since studies train dozens."""
DIFFICULTIES = {"easier": 0.1, "demo": 0.28, "harder": 0.5}
"""Shares of objects that are faded and partly covered."""


def parse_args(description: str | None, **extra_arguments: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="keeps everything that is built and measured")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="worlds at a time, a core each")
    for name, options in extra_arguments.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


T = TypeVar("T")


def run_parallel(experiments: Sequence[Experiment], run: Callable[[Experiment], T], num_workers: int) -> list[T]:
    """What `work`, a module's function, finds in each world, so many at a time."""
    with ProcessPoolExecutor(num_workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(run, experiments))


def cached_result(output_dir: Path, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell's figures: those that are kept, or else those that `work` gives now."""
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
    """A cell for each setting of a study in one world."""

    def run_setting(setting: str) -> dict[str, Any]:
        name = "".join(c if c.isalnum() else "_" for c in setting)
        return cached_result(experiment.output_dir, f"{study}-{experiment.seed}-{name}", lambda: measure(experiment, setting))

    return [run_setting(setting) for setting in settings]


@dataclass(frozen=True)
class Experiment:
    """One seed's world at one difficulty, its parts in `out`."""

    output_dir: Path
    seed: int
    difficulty: str = "demo"
    fact_recall: float = 0.8
    fact_error_rate: float = 0.05

    @property
    def directory(self) -> Path:
        return self.output_dir / f"{self.difficulty}-{self.seed}"

    @cached_property
    def data_config(self) -> ScenesConfig:
        overrides = {"seed": self.seed, "hard": DIFFICULTIES[self.difficulty], "held_out_pairs": 1000}
        return load_config(
            ScenesConfig,
            find("configs", "demo/scenes"),
            overrides | {"fact_recall": self.fact_recall, "fact_error_rate": self.fact_error_rate},
        )

    @cached_property
    def sft_path(self) -> str:
        """The fine-tuned model, as the demo makes it."""
        config = self._stage_config(
            SFTConfig, "sft", model_name_or_path=str(folder("data") / "tiny_vlm"), output_dir=str(self.directory / "sft")
        )
        if not (self.directory / "sft" / "finished.json").exists():
            sft(config, data.build_sft_rows(self.data_config, self.data_config.cooccurrence_bias))
        return str(self.directory / "sft" / "model")

    @cached_property
    def pairs(self) -> tuple[list[Preference], list[Preference]]:
        """Training pairs and held-out pairs."""
        return data.build_preference_pairs(self.data_config, self.sft_path, self.directory / "pairs.jsonl")

    def train_reward(self, name: str, transform: Callable[[Preference], Preference] | None = None, **overrides: Any) -> str:
        """A reward model on the pairs, `change`d where facts are to be of another quality."""
        directory = self.directory / f"reward_{name}"
        if not (directory / "finished.json").exists():
            pair_splits = [[transform(p) for p in split_pairs] if transform else split_pairs for split_pairs in self.pairs]
            train_reward_model(
                self._stage_config(
                    RewardConfig, "reward", model_name_or_path=self.sft_path, output_dir=str(directory), **overrides
                ),
                *pair_splits,
            )
        return str(directory)

    def train_policy(
        self,
        name: str,
        prompts: Sequence[Example] | None = None,
        extra_rewards: dict[str, RewardFunction] | None = None,
        **overrides: Any,
    ) -> str:
        """A policy trained on prompts, the demo's if none are given."""
        directory = self.directory / f"ppo_{name}"
        if not (directory / "finished.json").exists():
            config = self._stage_config(
                PPOConfig,
                "ppo",
                model_name_or_path=self.sft_path,
                output_dir=str(directory),
                min_probe_detection_rate=0,
                **POLICY_BUDGET | overrides,
            )
            ppo(config, data.build_rl_prompts(self.data_config) if prompts is None else prompts, None, extra_rewards)
        return str(directory / "policy")

    def evaluate(self, adapter_path: str | None, num_scenes: int = 300) -> dict[str, float]:
        """Greedy answers on the first held-out scenes: what the demo's table shows."""
        benchmark = load_benchmark("scenes")
        rows = benchmark.prompts("held_out", num_scenes)
        with load_policy(self.sft_path, adapter_path) as vlm:
            answers = {e.id: texts for e, texts in generate_batches(vlm, rows, data.GREEDY, batch_size=100)}
        metrics = score_scenes(benchmark, rows, answers, None, self.seed)["held_out"]
        return {k: v for k, v in metrics.items() if isinstance(v, float)}

    def complete_facts(self, pair: Preference) -> tuple[Fact, ...]:
        """All that is true of a pair's scene."""
        index = int(pair.id.split("-")[1])
        return scenes.annotator_facts(
            data.training_scene("pairs", index, self.data_config),
            np.random.default_rng([9, index]),
            recall=1.0,
            error_rate=0.0,
        )

    def _stage_config(self, config_class: Any, stage: str, **values: Any) -> Any:
        return load_config(
            config_class,
            find("configs", f"demo/{stage}"),
            {"dataset_name": data.IN_MEMORY_DATASET, "seed": self.seed, **values},
        )

    def with_changes(self, **changes: Any) -> Experiment:
        return replace(self, **changes)


# ---- over seeds --------------------------------------------------------------------------------------------------------


def mean_and_half_width(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of the 95% t-interval; the width is NaN for one value."""
    array = np.array(list(values), dtype=float)
    half_width = float(stats.t.ppf(0.975, len(array) - 1) * stats.sem(array)) if len(array) > 1 else float("nan")
    return float(array.mean()), half_width


def format_mean(values: Iterable[float], as_percent: bool = False, sign: str = "") -> str:
    """Mean and half width as tables have them; of one value there is no width, of none nothing."""
    samples = list(values)
    scale, digits = (100, 1) if as_percent else (1, 2)
    if not samples:
        return "-"
    mean, half_width = mean_and_half_width(samples)
    return f"{mean * scale:{sign}.{digits}f}" + (f" ± {half_width * scale:.{digits}f}" if len(samples) > 1 else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
