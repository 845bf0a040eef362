"""Losses of the policy and the critic, and KL estimators: pure functions on tensors.

Shape suffixes: B answers, T tokens of an answer. `mask_BT` is 1 on the tokens of an answer and 0 on
padding. Every sum is over the mask and divided by a count over all micro-batches and processes, so
that micro-batches add up and wider padding changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmrlhf.config.algorithm import KLEstimator, PolicyLossType, RatioLevel
from mmrlhf.training.losses import Metrics

MAX_LOG_RATIO = 20.0
"""Nats to which log-ratios are limited, so that their exponential stays finite."""


# ---- KL to the reference -------------------------------------------------------------------------


def kl(estimator: KLEstimator, logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return an estimate of KL(policy || reference) at each sampled token [B, T]."""
    return {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[estimator](logps_BT, ref_logps_BT)


def kl_k1(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return log p/q per sampled token: Schulman's k1, an unbiased estimate of KL(p || q)."""
    return logps_BT - ref_logps_BT


def kl_k2(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return (log p/q)^2 / 2 per sampled token: Schulman's k2.

    It is biased, but over the policy's own answers its gradient is an unbiased estimate of that of
    KL(p || q).
    """
    return 0.5 * (logps_BT - ref_logps_BT) ** 2


def kl_k3(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return q/p - 1 - log q/p per sampled token: Schulman's k3.

    It is unbiased and never negative, and has a lower variance than k1.
    """
    log_ratio_BT = (ref_logps_BT - logps_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio_BT.exp() - 1 - log_ratio_BT


# ---- one loss of many tokens ---------------------------------------------------------------------


@dataclass(frozen=True)
class Aggregation:
    """Adds the losses of tokens up to a mean, by counts of the minibatch over all processes.

    `dapo` is the mean over tokens (Yu et al. 2025, section 3.3), so long answers weigh more. `grpo`
    is the mean over answers of their means over tokens (Shao et al. 2024, equation 3), so a token
    of a long answer weighs less. `dr_grpo` divides the sum by answers x `max_tokens`, a constant,
    so each token weighs the same in every minibatch (Liu et al. 2025, section 3).
    """

    loss_type: PolicyLossType
    num_tokens: Tensor | float
    num_answers: int
    max_tokens: int

    def __call__(self, values_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Return this part's share of the mean of `values_BT` over the mask."""
        if self.loss_type == "dapo":
            return (values_BT * mask_BT).sum() / self.num_tokens
        if self.loss_type == "grpo":
            return ((values_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)).sum() / self.num_answers
        return (values_BT * mask_BT).sum() / (self.num_answers * self.max_tokens)


# ---- policy and critic ---------------------------------------------------------------------------


def log_ratios(level: RatioLevel, logps_BT: Tensor, old_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return log new/old probability of each token, clamped to +-20; 0 on padding [B, T].

    At the level `sequence`, a token has the mean over its answer, which is the logarithm of the
    geometric mean of the ratios (GSPO, Zheng et al. 2025, equation 7), and the gradient of its own
    log-prob (GSPO-token, equation 14). If the advantages of an answer are equal, that is GSPO.
    """
    log_ratio_BT = ((logps_BT - old_logps_BT) * mask_BT).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if level == "token":
        return log_ratio_BT
    mean_B1 = (log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)).detach()
    return (mean_B1 + logps_BT - logps_BT.detach()) * mask_BT


def importance_weights(level: RatioLevel, old_logps_BT: Tensor, sampled_logps_BT: Tensor, mask_BT: Tensor, cap: float) -> Tensor:
    """Return min(trainer's / engine's probability of the sampled token, `cap`) per token [B, T].

    The surrogate loss is an expectation over answers of the trainer's policy. `sampled_logps_BT`
    are the log-probs of the engine that sampled instead; their ratio corrects for the difference,
    and the cap bounds its variance (truncated importance sampling, Ionides 2008; for rollout
    engines Yao et al. 2025). `level` is that of `log_ratios`. The weights have no
    gradient.
    """
    return log_ratios(level, old_logps_BT, sampled_logps_BT, mask_BT).detach().exp().clamp(max=cap)


def ppo_policy(
    logps_BT: Tensor,
    old_logps_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    aggregate: Aggregation,
    *,
    cliprange: float,
    epsilon_high: float | None = None,
    delta: float | None = None,
    level: RatioLevel = "token",
    weights_BT: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Return the clipped surrogate loss. Schulman et al. 2017, equation 7.

    Ratios are clipped to 1 - `cliprange` and 1 + `epsilon_high`, which is `cliprange` by default
    (Yu et al. 2025, DAPO, section 3.1). With `delta`, the ratio of a token with advantage A < 0 is
    limited: its loss is at most delta |A| (dual clip, Ye et al. 2020; two-sided clipping,
    INTELLECT-2, 2025). With `weights_BT` (`importance_weights`), each token's loss is multiplied by
    its weight. Metrics are shares of the tokens.
    """
    log_ratio_BT = log_ratios(level, logps_BT, old_logps_BT, mask_BT)
    ratio_BT = log_ratio_BT.exp()
    lowest, highest = 1 - cliprange, 1 + (cliprange if epsilon_high is None else epsilon_high)
    unclipped_BT = -advantages_BT * (ratio_BT if delta is None else ratio_BT.clamp(max=delta))
    clipped_BT = -advantages_BT * ratio_BT.clamp(lowest, highest)
    losses_BT = torch.maximum(unclipped_BT, clipped_BT)
    loss = aggregate(losses_BT if weights_BT is None else weights_BT * losses_BT, mask_BT)
    with torch.no_grad():
        is_clipped_BT = clipped_BT > unclipped_BT

        def mean(values_BT: Tensor) -> Tensor:
            return (values_BT * mask_BT).sum() / aggregate.num_tokens

        metrics = {
            "loss/policy_avg": loss.detach(),
            "policy/approxkl_avg": mean(0.5 * log_ratio_BT**2),
            "policy/clipfrac_avg": mean(is_clipped_BT),
            "clip_ratio/low_mean": mean(is_clipped_BT & (ratio_BT < lowest)),
            "clip_ratio/high_mean": mean(is_clipped_BT & (ratio_BT > highest)),
            "val/ratio": mean(ratio_BT),
        }
        if delta is not None:
            metrics["clip_ratio/delta_mean"] = mean((advantages_BT < 0) & (ratio_BT > delta))
        return loss, metrics


def ppo_value(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, cliprange: float, num_tokens: Tensor | float
) -> tuple[Tensor, Metrics]:
    """Return half the squared error of the values, the larger of clipped and unclipped.

    It is summed over the mask and divided by `num_tokens`, the minibatch's number over all
    processes. `cliprange` is in the units of the returns. From OpenAI Baselines' PPO2.
    """
    # Within the range this is the value itself, so that rounding does not count as clipping.
    clipped_BT = values_BT.clamp(old_values_BT - cliprange, old_values_BT + cliprange)
    unclipped_BT, clipped_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * (torch.maximum(unclipped_BT, clipped_BT) * mask_BT).sum() / num_tokens
    return loss, {
        "loss/value_avg": loss.detach(),
        "val/clipfrac_avg": ((clipped_BT > unclipped_BT) * mask_BT).sum() / num_tokens,
    }
