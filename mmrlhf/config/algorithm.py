"""Settings of the algorithm: advantages, losses and the KL to the reference."""

from __future__ import annotations

from typing import Literal

from mmrlhf.config.base import Count, Fraction, NonNegative, Positive, settings


@settings
class AlgorithmConfig:
    """How rewards become advantages, the losses, and the KL to the reference."""

    advantage_estimator: Literal["gae", "grpo"] = "gae"
    """How rewards become advantages: `gae`, generalised advantage estimation (PPO), or `grpo`,
    relative to the other answers to the prompt."""
    use_critic: bool | None = None
    """Train a critic; by default for gae and not for grpo. Without one, gae takes every value as 0
    (reward-to-go); grpo cannot use one."""
    critic_sees_facts: bool = False
    """Show the critic the facts before the question; the policy never sees them."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the critic; learning_rate by default."""
    kl_penalty: Literal["reward", "loss"] | None = None
    """Where the KL to the reference is penalised: in each token's `reward` (estimate k1) or in the
    `loss` (k3); by default in the reward for gae and in the loss for grpo."""
    num_ppo_epochs: Count = 2
    """Passes over the answers of a step."""
    num_mini_batches: Count = 2
    """Optimiser steps per pass."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference."""
    cliprange: Positive = 0.2
    """Clip range of the policy ratio around 1."""
    cliprange_value: Positive = 0.2
    """Clip range of the new value around the old one, in standard deviations of the reward model's
    scores."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance (their mean is kept) before computing advantages."""
    span_credit: Literal["token", "last_token"] = "token"
    """Where span rewards are credited: at the `token` that ends the span, or at the `last_token` of
    the answer."""

    @property
    def has_critic(self) -> bool:
        """Return whether the run trains a critic."""
        return self.advantage_estimator == "gae" if self.use_critic is None else self.use_critic

    @property
    def kl_in_loss(self) -> bool:
        """Return whether the KL is a term of the policy's loss instead of the rewards."""
        if self.kl_penalty is None:
            return self.advantage_estimator == "grpo"
        return self.kl_penalty == "loss"

    @property
    def credits_spans(self) -> bool:
        """Return whether span rewards go to their own tokens; grpo rewards only full answers."""
        return self.span_credit == "token" and self.advantage_estimator == "gae"
