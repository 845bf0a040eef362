"""Configuration of the stage ppo."""

from __future__ import annotations

from mmrlhf.config.algorithm import AlgorithmConfig
from mmrlhf.config.base import NonNegativeInt, RolloutConfig, settings
from mmrlhf.config.policy_eval import PolicyEvalConfig
from mmrlhf.config.rewards import RewardTermsConfig
from mmrlhf.config.training import TrainConfig


@settings
class PPOConfig(AlgorithmConfig, RewardTermsConfig, RolloutConfig, PolicyEvalConfig, TrainConfig):
    """Optimise a policy with PPO on rows with a `prompt` and images; policies never see facts."""

    num_sample_generations: NonNegativeInt = 4
    """Answers printed and saved at each logging step."""
