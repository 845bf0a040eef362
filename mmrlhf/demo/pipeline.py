"""`mmrlhf demo`: run the full pipeline on synthetic scenes, with the stages that train any model.

SFT on captions with a co-occurrence bias -> answers of that model, ranked in pairs -> reward models
with and without facts -> PPO against each -> hallucination before and after, on scenes used for
neither training nor selection.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.config.loader import Config, load_config, save_config
from mmrlhf.demo.data import (
    IN_MEMORY_DATASET,
    LazyRows,
    benchmark_rows,
    build_preference_pairs,
    build_rl_prompts,
    build_sft_rows,
)
from mmrlhf.demo.measure import POLICIES, SELECTED_BY, TrainedModels, gallery, generate_answers, selection_metrics, summarise
from mmrlhf.demo.side_by_side import run_side_by_side
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.bundled import find, folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.vlm import VLM
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError
from mmrlhf.report.page import write_report
from mmrlhf.report.plots import write_overview_image
from mmrlhf.report.results import format_duration
from mmrlhf.report.terminal import print_results_table, print_stage_times
from mmrlhf.reward_model import train_reward_model
from mmrlhf.sft import sft

EVAL_STEPS = 8
"""Steps between evaluations during ppo."""
PAIRS_FILE = "pairs.jsonl"


def demo(output_dir: str = "runs/demo", fresh: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run every stage that has not finished yet, write the report and return the summary.

    `seed` determines training scenes, captions, pairs, initial weights and samples, but not the
    evaluation scenes. `fresh` first deletes the demo in `output_dir`.

    Raises InputError if `output_dir` belongs to another demo.
    """
    output_path, console = Path(output_dir), Console(highlight=False)
    data_config = load_config(ScenesConfig, find("configs", "demo/scenes"), {"seed": seed})
    base_path = str(folder("data") / "tiny_vlm")
    _claim_output_dir(output_path, fresh, data_config, base_path)
    timer = StageTimer(output_path / "seconds.json", console)

    # 1. SFT on annotators' biased captions and, as an upper bound (the same vision with better
    #    data), on captions without the bias
    with timer.stage("sft"):
        train = partial(_train_sft, data_config, output_path, base_path)
        biases = {"sft": data_config.cooccurrence_bias, "clean_sft": 0.0}
        sft_paths = run_side_by_side({name: partial(train, name, bias) for name, bias in biases.items()})
    sft_path = sft_paths["sft"]

    # 2. Preference pairs: the SFT model's own answers, ranked by utility
    with timer.stage("pairs"):
        build_preference_pairs(data_config, sft_path, output_path / PAIRS_FILE)

    # 3. Reward models with and without facts, on the same pairs
    with timer.stage("reward models"):
        train = partial(_train_reward_model, data_config, output_path, sft_path)
        facts = {"reward_fact": "given", "reward_plain": "none"}
        reward_paths = run_side_by_side({name: partial(train, name, value) for name, value in facts.items()})

    # 4. PPO against each reward model, on the same prompts
    with timer.stage("ppo"):
        train = partial(_train_policy, data_config, output_path, sft_path)
        rewards = {"ppo_fact": reward_paths["reward_fact"], "ppo_plain": reward_paths["reward_plain"]}
        policy_paths = run_side_by_side({name: partial(train, name, path) for name, path in rewards.items()})

    # 5. Answers of every model on every split
    models = TrainedModels(sft_path, sft_paths["clean_sft"], policy_paths, reward_paths)
    with timer.stage("evaluation"):
        answers = generate_answers(data_config, models, output_path / "answers")

    # 6. Summary and report
    start_time = time.time()
    summary = summarise(data_config, output_path, answers, timer.seconds)
    write_atomic(output_path / "summary.json", json.dumps(summary, indent=1))
    curves = {name: read_jsonl(output_path / name / "metrics.jsonl") for name in POLICIES}
    entries, notes = gallery(data_config, answers), {k: str(v) for k, v in asdict(data_config).items()}
    write_report(output_path / "report.html", summary, curves, entries, notes)
    write_overview_image(output_path / "overview.png", summary, entries)
    print_results_table(summary)
    print_stage_times({**timer.seconds, "summary and report": time.time() - start_time})
    console.print(
        f"{output_path / 'report.html'} shows images, answers and curves; {output_path / 'summary.json'} has the numbers"
    )
    return summary


# ---- stages, each in its own process -------------------------------------------------------------


def _train_sft(data_config: ScenesConfig, output_path: Path, base_path: str, name: str, cooccurrence_bias: float) -> str:
    config = stage_config(SFTConfig, data_config.seed, output_path / name, model_name_or_path=base_path)
    return str(sft(config, LazyRows(partial(build_sft_rows, data_config, cooccurrence_bias))))


def _train_reward_model(data_config: ScenesConfig, output_path: Path, sft_path: str, name: str, facts: str) -> str:
    """Train for two epochs, with scores that stay near the SFT model's untrained review.

    This is the best of eleven recipes for 1,000 labels (docs/results/reward_models.md).
    """
    config = stage_config(
        RewardConfig,
        data_config.seed,
        output_path / name,
        model_name_or_path=sft_path,
        facts=facts,
        num_train_epochs=2.0,
        untrained_score_coefficient=0.1,
    )
    return str(train_reward_model(config, *build_preference_pairs(data_config, sft_path, output_path / PAIRS_FILE)))


def _train_policy(data_config: ScenesConfig, output_path: Path, sft_path: str, name: str, reward_model_path: str) -> str:
    """Train a policy. The result is the best one on the selection split."""
    config = stage_config(
        PPOConfig,
        data_config.seed,
        output_path / name,
        model_name_or_path=sft_path,
        reward_model_path=reward_model_path,
        eval_steps=EVAL_STEPS,
        metric_for_best_model=SELECTED_BY,
        load_best_model_at_end=True,
    )
    selection_rows = LazyRows(partial(benchmark_rows, "selection", data_config.selection_scenes))
    return str(ppo(config, LazyRows(partial(build_rl_prompts, data_config)), partial(_evaluate_policy, selection_rows)))


def _evaluate_policy(selection_rows: Sequence[Example], vlm: VLM) -> dict[str, float]:
    return selection_metrics(vlm, selection_rows)


def stage_config(config_class: type[Config], seed: int, output_dir: Path, **values: Any) -> Config:
    """Load the demo's recipe for a stage (`configs/demo/`), for rows passed in memory."""
    recipe = {SFTConfig: "sft", RewardConfig: "reward", PPOConfig: "ppo"}[config_class]  # type: ignore[index]
    overrides = {"dataset_name": IN_MEMORY_DATASET, "seed": seed, "output_dir": str(output_dir), **values}
    return load_config(config_class, find("configs", f"demo/{recipe}"), overrides)


def _claim_output_dir(output_path: Path, fresh: bool, data_config: ScenesConfig, base_path: str) -> None:
    """Create the directory, or check that its demo can be continued. Raises InputError if not."""
    refuse_unwritable(output_path, "output_dir")
    config_file, hash_file = output_path / "scenes.yaml", output_path / "base.sha256"
    if not config_file.is_file() and output_path.is_dir() and any(output_path.iterdir()):
        raise InputError(f"output_dir {output_path} has files that are not a demo's: give another --output_dir, or an empty one")
    folder = output_path.resolve()  # a symlink stays
    try:
        if fresh and folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise InputError(
            f"output_dir {output_path} cannot be deleted ({error.strerror}: {error.filename}): delete it yourself, or give "
            "another --output_dir"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    if config_file.is_file() and load_config(ScenesConfig, config_file, {}) != data_config:
        raise InputError(
            f"{output_path} holds a demo with other scenes or another seed: "
            "give its --seed or another --output_dir, or add --fresh"
        )
    base_hash = hashlib.sha256((Path(base_path) / "model.safetensors").read_bytes()).hexdigest()
    if hash_file.is_file() and hash_file.read_text() != base_hash:
        raise InputError(f"{output_path} holds a demo of another base model: give another --output_dir, or add --fresh")
    save_config(data_config, config_file)
    write_atomic(hash_file, base_hash)


class StageTimer:
    """Print how long each stage takes, and add up the time of interrupted runs.

    The time of a run that was killed is not counted.
    """

    def __init__(self, path: Path, console: Console):
        self.path, self.console = path, console
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, also if an error or a signal ends it."""
        self.console.rule(name)
        start_time = time.time()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.time() - start_time, 1)
            write_atomic(self.path, json.dumps(self.seconds))
        self.console.print(f"{name} finished in {format_duration(self.seconds[name])}")
