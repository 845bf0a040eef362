"""Configurations of tiny training runs for the tests of stages, and an adapter to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmrlhf.config import DPOConfig, PPOConfig, RewardConfig
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.export import save_policy
from mmrlhf.models.loading import load


def reward_config(model: str, output_dir: Path, **settings: Any) -> RewardConfig:
    """Return the configuration of a reward model that learns twelve pairs in four steps."""
    return RewardConfig(
        model_name_or_path=model,
        dataset_name="x",
        output_dir=str(output_dir),
        **{"learning_rate": 2e-3, "lora_r": 4, "per_device_train_batch_size": 6, "max_steps": 4, **settings},
    )


def dpo_config(model: str, output_dir: Path, **settings: Any) -> DPOConfig:
    """Return the configuration of four DPO steps on twelve pairs."""
    defaults = {
        "learning_rate": 1e-3,
        "lora_r": 4,
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "save_steps": 1,
        "num_sample_generations": 0,
    }
    return DPOConfig(model_name_or_path=model, dataset_name="x", output_dir=str(output_dir), **{**defaults, **settings})


def ppo_config(model: str, reward_model: Path | str | None, output_dir: Path, **settings: Any) -> PPOConfig:
    """Return the configuration of three PPO steps on three prompts with two answers each.

    Each prompt is a minibatch.
    """
    defaults = {
        "learning_rate": 1e-3,
        "lora_r": 4,
        "per_device_train_batch_size": 3,
        "num_generations": 2,
        "response_length": 10,
        "min_probe_detection_rate": 0,
        "allow_worse_reward_model": True,
        "max_steps": 3,
        "save_steps": 1,
    }
    return PPOConfig(
        model_name_or_path=model,
        dataset_name="x",
        output_dir=str(output_dir),
        reward_model_path=None if reward_model is None else str(reward_model),
        **{"num_mini_batches": settings.get("per_device_train_batch_size", 3), **defaults, **settings},
    )


def save_start_adapter(model: str, folder: Path) -> Adapters:
    """Write an adapter that changes the model, for stages to start from; return it as `start`."""
    adapters = Adapters(load(model))
    adapters.add("start", 3, 12, seed=0, target_modules="q_proj,v_proj")
    with torch.no_grad():
        for i, parameter in enumerate(adapters.parameters("start").values()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    save_policy(adapters, "start", folder)
    return adapters
