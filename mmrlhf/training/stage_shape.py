"""What determines the memory of a training stage: its roles, and what runs at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmrlhf.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig, TrainConfig
from mmrlhf.models.adapters import absolute_name
from mmrlhf.rewards.fact_rm import reward_model_paths
from mmrlhf.rewards.reward_terms import parse_reward_spec

ANSWER_TOKENS = 256
"""Assumed tokens of an answer in sft and reward."""


@dataclass(frozen=True)
class StageShape:
    """What determines the memory of a stage, besides settings that all stages have."""

    roles: Mapping[str, str | None]
    """The adapters on the base, each with the folder that it is loaded from."""
    trained_roles: Sequence[str]
    tuning: str = "lora"
    """`full` trains the language model and has no adapters, `head` trains a head only."""
    group_size: int = 1
    """Answers of a row, or to a prompt."""
    answer_length: int = ANSWER_TOKENS
    prompts_per_row: int = 1
    batches_of_images: int = 1
    """Number of steps whose image features are in memory at once."""
    is_sampling: bool = False
    separate_bases: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Base and dtype of each reward model that has a base of its own, by its path."""


def stage_shape(config: TrainConfig, base_fingerprint: str = "") -> StageShape:
    """Return the shape of sft, reward, dpo or ppo.

    `base_fingerprint`, if the weights are known, identifies reward models that share the base.
    """
    start = config.adapter_path
    if isinstance(config, PPOConfig):
        return _ppo_shape(config, base_fingerprint)
    if isinstance(config, DPOConfig):
        roles = {"policy": start, **({"reference": start} if start else {})}
        # With image pairs, a row has a second prompt, with its best answer.
        prompts_per_row = 1 if config.image_pairs == "none" else 2
        return StageShape(roles, ["policy"], group_size=1 + prompts_per_row, prompts_per_row=prompts_per_row)
    if isinstance(config, RewardConfig):
        return StageShape({"reward": start}, ["reward"], config.tuning, group_size=2)
    assert isinstance(config, SFTConfig)
    return StageShape({"sft": start}, ["sft"], config.tuning)


def _ppo_shape(config: PPOConfig, base_fingerprint: str) -> StageShape:
    has_reward_model = "fact_rm" in parse_reward_spec(config.reward_terms)
    paths = (reward_model_paths(config) or ["-"]) if has_reward_model else []
    separate_bases = {path: base for path in paths if (base := _separate_base(path, config, base_fingerprint)) is not None}
    rewards = [path for path in paths if path not in separate_bases]
    roles: dict[str, str | None] = {"policy": config.adapter_path}
    if config.has_critic:
        roles["value"] = rewards[0] if rewards and rewards[0] == paths[0] else None
    trained_roles = list(roles)
    if config.sync_ref_model or config.adapter_path:
        roles["reference"] = config.adapter_path
    if config.async_steps:
        roles["sampler"] = config.adapter_path
    return StageShape(
        roles=roles | {f"reward_{i}" if i else "reward": path for i, path in enumerate(rewards)},
        trained_roles=trained_roles,
        group_size=config.num_generations,
        answer_length=config.response_length,
        batches_of_images=1 + config.async_steps,  # and the next step's
        is_sampling=True,
        separate_bases=separate_bases,
    )


def _separate_base(path: str, config: PPOConfig, base_fingerprint: str) -> tuple[str, str] | None:
    """Return the base and dtype of a reward model that does not share the policy's base.

    Returns None if it shares that base, does not exist yet, or cannot be read.
    """
    try:
        metadata = json.loads((Path(path) / "reward.json").read_text(encoding="utf-8"))
        base, dtype = str(metadata["base"]), str(metadata["dtype"])
        reward_fingerprint = metadata.get("base_fingerprint")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # loading reports it
        return None
    if base_fingerprint:
        has_same_base = base != "model" and reward_fingerprint == base_fingerprint
    else:
        has_same_base = base == absolute_name(config.model_name_or_path)
    shares_base = has_same_base and dtype == config.dtype
    return None if shares_base else (str(Path(path) / "model") if base == "model" else base, dtype)
