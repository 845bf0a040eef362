"""Configuration of the stage ppo."""

from __future__ import annotations

from mmrlhf.config.algorithm import AdvantageScaling, AlgorithmConfig
from mmrlhf.config.base import Count, NonNegative, Positive, RolloutConfig, settings
from mmrlhf.config.policy_eval import PolicyEvalConfig
from mmrlhf.config.rewards import RewardTermsConfig
from mmrlhf.config.rollout_engine import RolloutEngineConfig


@settings
class PPOConfig(AlgorithmConfig, RewardTermsConfig, RolloutConfig, RolloutEngineConfig, PolicyEvalConfig):
    """Optimise a policy with PPO on rows with a `prompt` and images; policies never see facts."""

    max_kl: Positive | None = None
    """Stop once the KL of a step's answers to the reference, in nats per answer, is above this."""
    ptx_coef: NonNegative = 0.0
    """Weight of the loss on the answers of ptx_dataset_name, added to the policy's (PPO-ptx)."""
    ptx_dataset_name: str | None = None
    """SFT rows to mix in: an optimiser step uses one for each of its prompts."""
    sync_ref_model: bool = False
    """Make the reference a copy of the policy every ref_model_sync_steps."""
    ref_model_sync_steps: Count = 512
    """Steps between two copies, for sync_ref_model."""
    dynamic_sampling: bool = False
    """Replace prompts whose answers all score alike by the next ones (DAPO)."""
    max_num_gen_batches: Count = 10
    """Rounds of sampling in a step, for dynamic_sampling; prompts that still score alike stay."""

    @property
    def advantage_scaling(self) -> AdvantageScaling:
        """Return the set over which advantages are scaled."""
        if self.advantage_estimator == "grpo":  # with normalised reward functions it is GDPO
            return "answers" if self.compares_terms_in_groups else self.scale_rewards
        if self.advantage_estimator == "rloo":
            return "answers" if self.normalize_advantages else "none"
        return "none" if self.normalize_advantages is False else "tokens"

    @property
    def credits_spans(self) -> bool:
        """Return whether span rewards go to their own tokens; else they are added up.

        Of normalised ones the mean is subtracted, from the answer as a whole. If it were subtracted
        at the answer's end and spans kept their tokens, the end would cost as much as all claims
        earn: policies then write longer and longer answers (docs/results/claims.md).
        """
        are_normalized = self.multi_objective_aggregation == "normalize_then_sum"
        return self.span_credit == "token" and self.has_critic and not are_normalized
