"""Settings of the algorithm: advantages, losses and the KL to the reference."""

from __future__ import annotations

from typing import Literal

from mmrlhf.config.base import Count, Fraction, NonNegative, Positive, settings

AdvantageEstimator = Literal["gae", "rloo", "grpo", "reinforce_plus_plus"]
PolicyLossType = Literal["dapo", "grpo", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]
KLEstimator = Literal["k1", "k2", "k3"]
AdvantageScaling = Literal["group", "batch", "answers", "tokens", "none"]
"""The set over which advantages are scaled, as `advantages.scale` says."""


@settings
class AlgorithmConfig:
    """How rewards become advantages, the losses, and the KL to the reference."""

    advantage_estimator: AdvantageEstimator = "gae"
    """How rewards become advantages: `gae`, generalised advantage estimation (PPO); `rloo` and
    `grpo`, relative to the other answers to the prompt; or `reinforce_plus_plus`, relative to all
    answers of the step."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divisor of grpo's advantages: the standard deviation of the rewards of the prompt's answers
    (`group`), or of the step's (`batch`), or `none` (Dr. GRPO)."""
    normalize_advantages: bool | None = None
    """Bring the advantages of a step to standard deviation 1; by default for gae and
    reinforce_plus_plus and not for rloo. grpo has scale_rewards instead."""
    span_credit: Literal["token", "last_token"] = "token"
    """Where span rewards are credited: at the `token` that ends the span, or at the `last_token` of
    the answer (always without a critic, and if reward functions are normalised)."""
    num_ppo_epochs: Count = 2
    """Passes over the answers of a step."""
    num_mini_batches: Count = 2
    """Optimiser steps per pass; the prompts of a step are split evenly."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance (their mean is kept) before computing advantages."""
    gamma: Fraction = 1.0
    """Discount of later rewards, for gae and reinforce_plus_plus."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation; 1 without a critic."""

    loss_type: PolicyLossType = "dapo"
    """Average of the policy's loss: over all tokens (`dapo`), each answer's mean over its tokens
    (`grpo`), or each answer's sum over its tokens divided by response_length (`dr_grpo`)."""
    mask_truncated_completions: bool = False
    """Leave answers that are cut off at response_length out of the policy's loss and its counts of
    tokens (DAPO's overlong filtering). Advantages still compare all answers, and the critic learns
    from all of them, so that both know what is likely to be cut off."""
    importance_sampling_level: RatioLevel = "token"
    """Which ratio of new to old probability is clipped: each `token`'s, or that of the `sequence`,
    the geometric mean over an answer (GSPO)."""
    cliprange: Positive = 0.2
    """Clip range of the policy ratio around 1."""
    epsilon_high: Positive | None = None
    """Clip range above 1, if different from cliprange, such as 0.28 (DAPO)."""
    delta: Positive | None = None
    """Limit on the ratio of a token with a negative advantage (dual clip), above 1 + epsilon_high,
    such as 3; by default none."""

    use_critic: bool | None = None
    """Train a critic; by default for gae. Without one, gae takes every value as 0 and lam as 1
    (reward-to-go); the other estimators cannot use one."""
    critic_sees_facts: bool = False
    """Show the critic the facts before the question; the policy never sees them."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the critic; learning_rate by default."""
    cliprange_value: Positive = 0.2
    """Clip range of the new value around the old one, in the unit of cliprange_value_unit."""
    cliprange_value_unit: Literal["reward", "returns"] = "reward"
    """Unit of cliprange_value: that of the `reward`, whose scores from the reward model have
    standard deviation 1, or the root mean square of the step's `returns`, for rewards of any
    scale."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""

    kl_penalty: Literal["reward", "loss"] | None = None
    """Where the KL to the reference is penalised: in each token's `reward` or in the `loss`; by
    default in the loss for grpo and else in the reward."""
    kl_estimator: KLEstimator | None = None
    """Estimate of the KL that is penalised (Schulman 2020); by default k1 in the reward and k3 in
    the loss."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference; with target_kl, that of the first step."""
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` changes the weight of the KL after every step to keep objective/kl at target_kl: a
    PI controller of the weight's logarithm."""
    target_kl: Positive | None = None
    """Target of kl_controller adaptive, in nats per answer. Judge it by the mean of ten steps."""
    kl_horizon: Positive | None = None
    """Answers over which kl_controller adaptive corrects a lasting error: its integral gain is the
    answers of a step / kl_horizon. By default those of ten steps, a gain of 0.1."""

    @property
    def has_critic(self) -> bool:
        """Return whether the run trains a critic."""
        return self.advantage_estimator == "gae" if self.use_critic is None else self.use_critic

    @property
    def gae_lambda(self) -> float:
        """Return lam, or 1 without a critic: rewards to go."""
        return self.lam if self.has_critic else 1.0

    @property
    def kl_in_loss(self) -> bool:
        """Return whether the KL is a term of the policy's loss instead of the rewards."""
        if self.kl_penalty is None:
            return self.advantage_estimator == "grpo"
        return self.kl_penalty == "loss"

    @property
    def penalized_kl(self) -> KLEstimator:
        """Return the estimate of the KL that is penalised."""
        return self.kl_estimator or ("k3" if self.kl_in_loss else "k1")
