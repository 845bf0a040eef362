"""`mmrlhf demo`: the whole way on rendered scenes, through the same stages that train a model of your own.

SFT on captions with a habit -> answers of that model, ranked in pairs -> a reward model with facts and one without -> PPO
against each -> hallucination before and after, on scenes that nothing was trained or chosen on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrlhf import report
from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.config_loader import Config, load_config, save_config
from mmrlhf.demo.data import (
    IN_MEMORY_DATASET,
    _LazyRows,
    benchmark_rows,
    build_preference_pairs,
    build_rl_prompts,
    build_sft_rows,
)
from mmrlhf.demo.measure import gallery, generate_answers, selection_metrics, summarise
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.bundled import find, folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from mmrlhf.sft import sft


def demo(output_dir: str = "runs/demo", fresh: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run everything that is not there yet; returns what summary.json says.

    `seed` draws the training scenes, captions, pairs, first weights and samples; the scenes it is measured on stay the same.
    """
    output_path, console = Path(output_dir), Console(highlight=False)
    if fresh and output_path.exists():
        if not (output_path / "scenes.yaml").is_file():
            raise InputError(f"--fresh would empty {output_path}, which holds no demo: give another --output_dir")
        shutil.rmtree(output_path)
    output_path.mkdir(parents=True, exist_ok=True)
    data_config = load_config(ScenesConfig, find("configs", "demo/scenes"), {"seed": seed})
    if (output_path / "scenes.yaml").is_file() and load_config(ScenesConfig, output_path / "scenes.yaml", {}) != data_config:
        raise InputError(
            f"{output_path} holds a demo of another world or seed: give its --seed or another --output_dir, or add --fresh"
        )
    base_path = str(folder("data") / "tiny_vlm")
    base_hash = hashlib.sha256((Path(base_path) / "model.safetensors").read_bytes()).hexdigest()
    if (output_path / "base.sha256").is_file() and (output_path / "base.sha256").read_text() != base_hash:
        raise InputError(f"{output_path} holds a demo of another base model: give another --output_dir, or add --fresh")
    save_config(data_config, output_path / "scenes.yaml")
    write_atomic(output_path / "base.sha256", base_hash)
    stage_seconds: dict[str, float] = (
        json.loads((output_path / "seconds.json").read_text()) if (output_path / "seconds.json").exists() else {}
    )

    def run_stage(name: str, stage: Callable[[], Any]) -> Any:
        """A finished stage takes no time and keeps the time it took; one that was killed counts its longest stretch."""
        console.rule(name)
        start_time = time.time()
        result = stage()
        elapsed = round(time.time() - start_time, 1)
        stage_seconds[name] = max(elapsed, stage_seconds.get(name, 0.0))
        write_atomic(output_path / "seconds.json", json.dumps(stage_seconds))
        return result

    def stage_config(config_class: type[Config], stage: str, **values: str) -> Config:
        overrides = {"dataset_name": IN_MEMORY_DATASET, "seed": seed, **values}
        return load_config(config_class, find("configs", f"demo/{stage}"), overrides)

    # 1. Fine-tuning: on annotators' captions, and on captions without their habit (a reference for how true these eyes can be)
    def train_sft(name: str, cooccurrence_bias: float) -> str:
        config = stage_config(SFTConfig, "sft", model_name_or_path=base_path, output_dir=str(output_path / name))
        return str(sft(config, _LazyRows(lambda: build_sft_rows(data_config, cooccurrence_bias))))

    sft_path = run_stage("sft", lambda: train_sft("sft", data_config.cooccurrence_bias))
    clean_sft_path = run_stage("clean_sft", lambda: train_sft("clean_sft", 0.0))

    # 2. Preference pairs from the fine-tuned model's own answers
    train_pairs, held_out_pairs = run_stage(
        "pairs", lambda: build_preference_pairs(data_config, sft_path, output_path / "pairs.jsonl")
    )

    # 3. Reward models with and without facts
    def train_reward(facts: str) -> str:
        reward_dir = str(output_path / ("reward_fact" if facts == "given" else "reward_plain"))
        config = stage_config(RewardConfig, "reward", model_name_or_path=sft_path, facts=facts, output_dir=reward_dir)
        return str(train_reward_model(config, train_pairs, held_out_pairs))

    reward_model_paths = {
        "fact": run_stage("reward_fact", lambda: train_reward("given")),
        "plain": run_stage("reward_plain", lambda: train_reward("none")),
    }

    # 4. PPO against each
    prompts = _LazyRows(lambda: build_rl_prompts(data_config))
    selection_prompts = _LazyRows(lambda: benchmark_rows("selection", data_config.selection_scenes))

    def train_policy(name: str) -> str:
        config = stage_config(
            PPOConfig,
            "ppo",
            model_name_or_path=sft_path,
            reward_model_path=reward_model_paths[name],
            output_dir=str(output_path / f"ppo_{name}"),
        )
        return str(ppo(config, prompts, lambda vlm: selection_metrics(vlm, selection_prompts)))

    policy_paths = {f"ppo_{name}": run_stage(f"ppo_{name}", partial(train_policy, name)) for name in ("fact", "plain")}

    # 5. Every model on every split
    answers = run_stage(
        "evaluation",
        lambda: generate_answers(
            data_config, sft_path, clean_sft_path, policy_paths, reward_model_paths["fact"], output_path / "answers"
        ),
    )
    summary = summarise(data_config, output_path, answers, stage_seconds)
    write_atomic(output_path / "summary.json", json.dumps(summary, indent=1))
    curves = {name: read_jsonl(output_path / name / "metrics.jsonl") for name in ("ppo_plain", "ppo_fact")}
    gallery_entries = gallery(data_config, answers)
    report.write_report(
        output_path / "report.html", summary, curves, gallery_entries, {k: str(v) for k, v in asdict(data_config).items()}
    )
    report.write_overview_image(output_path / "picture.png", summary, gallery_entries)
    report.print_results_table(summary)
    console.print(
        f"{output_path / 'report.html'} shows pictures, answers and curves; {output_path / 'summary.json'} has the numbers"
    )
    return summary


# ---- data -------------------------------------------------------------------------------------------------------


# ---- measuring --------------------------------------------------------------------------------------------------
