"""Configurations of the stages that train on a round's pairs: recipes and the run's settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mmrlhf.config import DPOConfig, FeedbackConfig, PPOConfig, RewardConfig, SelectionConfig
from mmrlhf.config.loader import Config, load_config
from mmrlhf.files import bundled
from mmrlhf.training.run_rows import image_root

SHARED_SETTINGS = (
    "model_name_or_path", "max_length", "min_pixels", "max_pixels", "dtype", "seed", "save_total_limit", "lexicon_file",
    "share_prefix", "micro_batch_tokens", "activation_checkpointing", "feature_memory_gib", "feature_cache_dir", "feature_disk_gib",
)  # fmt: skip
"""Settings that a stage takes from the run, if it has them."""


def dpo_config(config: FeedbackConfig, folder: Path, policy: str | None) -> DPOConfig:
    """Return the settings of a round's dpo, whose start and reference is the adapter `policy`."""
    return _stage_config(DPOConfig, config.dpo_config, config, folder / "dpo", _pairs(config, folder) | _policy(config, policy))


def reward_config(config: FeedbackConfig, folder: Path) -> RewardConfig:
    """Return the settings of a round's reward model."""
    return _stage_config(RewardConfig, config.reward_config, config, folder / "reward", _pairs(config, folder))


def ppo_config(config: FeedbackConfig, folder: Path, policy: str | None, reward_model: str) -> PPOConfig:
    """Return the settings of a round's ppo against its reward model, on the same prompts."""
    prompts = {
        "dataset_name": config.dataset_name,
        "dataset_train_split": config.dataset_train_split,
        "image_folder": config.image_folder,
        "facts_file": config.facts_file,
        "reward_model_path": reward_model,
    }
    return _stage_config(PPOConfig, config.ppo_config, config, folder / "ppo", prompts | _policy(config, policy))


def _pairs(config: FeedbackConfig, folder: Path) -> dict[str, Any]:
    """Return the settings of the pairs on which a round trains; their rows contain their facts."""
    name = "pairs.jsonl" if config.human_dataset_name is None else "train.jsonl"
    return {"dataset_name": str(folder / name), "dataset_train_split": "train", "image_folder": image_root(config)}


def _policy(config: FeedbackConfig, policy: str | None) -> dict[str, Any]:
    """Return the settings of the policy that a round trains, and of the choice of the best one."""
    selection = {field.name: getattr(config, field.name) for field in dataclasses.fields(SelectionConfig)}
    best = {"load_best_model_at_end": True} if config.metric_for_best_model is not None else {}
    return {**selection, **best, "adapter_path": policy, "response_length": config.response_length}


def _stage_config(
    cls: type[Config], recipe: str | None, config: FeedbackConfig, output_dir: Path, values: dict[str, Any]
) -> Config:
    """Return a recipe of a stage with the settings that it shares with this run, and `values`.

    Raises InputError for a recipe that does not exist, or is of another stage.
    """
    file = None if recipe is None else Path(recipe) if Path(recipe).exists() else bundled.find("configs", recipe)
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    settings = {name: getattr(config, name) for name in SHARED_SETTINGS if name in names} | values
    if config.overlong == "drop":  # the run's rows are the stage's
        settings["overlong"] = "drop"
    # The recipe decides everything that is not set here.
    given = {name: value for name, value in settings.items() if value is not None}
    return load_config(cls, file, given | {"output_dir": str(output_dir)})
