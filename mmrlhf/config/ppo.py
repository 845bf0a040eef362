"""Configuration of the stage ppo."""

from __future__ import annotations

from typing import Literal

from mmrlhf.config.algorithm import AlgorithmConfig
from mmrlhf.config.base import RolloutConfig, settings
from mmrlhf.config.policy_eval import PolicyEvalConfig
from mmrlhf.config.rewards import RewardTermsConfig


@settings
class PPOConfig(AlgorithmConfig, RewardTermsConfig, RolloutConfig, PolicyEvalConfig):
    """Optimise a policy with PPO on rows with a `prompt` and images; policies never see facts."""

    @property
    def advantage_scaling(self) -> Literal["group", "batch", "answers", "tokens", "none"]:
        """Return over what advantages are brought to the same scale."""
        if self.advantage_estimator == "grpo":  # with normalised reward functions it is GDPO
            return "answers" if self.compares_terms_in_groups else self.scale_rewards or "group"
        if self.advantage_estimator == "rloo":
            return "answers" if self.normalize_advantages else "none"
        return "none" if self.normalize_advantages is False else "tokens"
