"""Losses and KL estimators: pure functions on tensors.

Shape suffixes: B answers (or pairs), T tokens of an answer. `mask_BT` is 1 on the tokens of an
answer and 0 on padding; every mean is over the mask, so wider padding changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, float]


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the mean over the mask; 0 for an empty mask."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def sft(logps_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Metrics]:
    """Return the negative log-likelihood per answer token."""
    loss = -masked_mean(logps_BT, mask_BT)
    return loss, {"loss": loss.item(), "num_tokens": float(mask_BT.sum())}


# ---- preferences: one loss for each comparison of two answers ------------------------------------


def bradley_terry(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """Return -log sigmoid(better - worse) [B].

    Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1.
    """
    return -F.logsigmoid(better_B - worse_B)


def bradley_terry_margin(better_B: Tensor, worse_B: Tensor, margin_B: Tensor) -> Tensor:
    """Return -log sigmoid(better - worse - margin) [B].

    A larger margin (surer annotators) pushes the rewards further apart. Touvron et al. 2023
    (Llama 2), equation 2.
    """
    return -F.logsigmoid(better_B - worse_B - margin_B)


def bradley_terry_smoothed(better_B: Tensor, worse_B: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy [B] if a share `smoothing` of labels is assumed to be flipped.

    Mitchell 2023 (conservative DPO), applied to rewards.
    """
    return -(1 - smoothing) * F.logsigmoid(better_B - worse_B) - smoothing * F.logsigmoid(worse_B - better_B)


def rao_kupper(better_B: Tensor, worse_B: Tensor, tie_B: Tensor, threshold: float) -> Tensor:
    """Return the Bradley-Terry loss with ties [B]. Rao and Kupper 1967, equation 2.3.

    P(better wins) = sigmoid(better - worse - threshold); the rest of the probability is a tie, so
    rewards closer than about `threshold` are likely to tie. `tie_B` is bool.
    """
    margin_B = better_B - worse_B
    # With a = margin - t and b = -margin - t, P(tie) = 1 - sigmoid(a) - sigmoid(b)
    # = (e^2t - 1) sigmoid(a) sigmoid(b). Unlike the difference, the product avoids cancellation.
    log_p_better_B, log_p_worse_B = F.logsigmoid(margin_B - threshold), F.logsigmoid(-margin_B - threshold)
    return -torch.where(tie_B, math.log(math.expm1(2 * threshold)) + log_p_better_B + log_p_worse_B, log_p_better_B)


def centering(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """Return (better + worse)^2 [B], which keeps rewards around zero.

    Eisenstein et al. 2023, equation 2.
    """
    return (better_B + worse_B) ** 2


def distance_to_untrained(scores_N: Tensor, untrained_scores_N: Tensor) -> Tensor:
    """Return (score - untrained score)^2 [N], which keeps a judge close to the untrained review."""
    return (scores_N - untrained_scores_N) ** 2


def kl_k1(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return log p/q per sampled token: Schulman's k1, an unbiased estimate of KL(p || q)."""
    return logps_BT - ref_logps_BT


def kl_k3(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """Return q/p - 1 - log q/p per sampled token: Schulman's k3.

    It is never negative, and has a lower variance than k1.
    """
    log_ratio_BT = ref_logps_BT - logps_BT
    return log_ratio_BT.exp() - 1 - log_ratio_BT


def ppo_policy(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, cliprange: float, num_tokens: Tensor | float
) -> tuple[Tensor, Metrics]:
    """Return the clipped surrogate loss. Schulman et al. 2017, equation 7.

    It is summed over the mask and divided by `num_tokens`, the token count of the minibatch over
    all micro-batches and processes, so that micro-batches add up. The log-ratio is clamped to
    +-20.
    """
    log_ratio_BT = ((logps_BT - old_logps_BT) * mask_BT).clamp(-20, 20)
    ratio_BT = log_ratio_BT.exp()
    unclipped_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - cliprange, 1 + cliprange)
    loss = (torch.maximum(unclipped_BT, clipped_BT) * mask_BT).sum() / num_tokens
    with torch.no_grad():
        return loss, {
            "loss/policy_avg": loss.item(),
            "policy/approxkl_avg": (0.5 * log_ratio_BT**2 * mask_BT).sum().item() / float(num_tokens),
            "policy/clipfrac_avg": ((clipped_BT > unclipped_BT) * mask_BT).sum().item() / float(num_tokens),
            "val/ratio": (ratio_BT * mask_BT).sum().item() / float(num_tokens),
        }


def ppo_value(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, cliprange: float, num_tokens: Tensor | float
) -> tuple[Tensor, Metrics]:
    """Return half the squared error of the values, the larger of clipped and unclipped.

    It is summed and divided as in `ppo_policy`. `cliprange` is in the units of the returns. From
    OpenAI Baselines' PPO2.
    """
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange, cliprange)
    unclipped_BT, clipped_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * (torch.maximum(unclipped_BT, clipped_BT) * mask_BT).sum() / num_tokens
    return loss, {
        "loss/value_avg": loss.item(),
        "val/clipfrac_avg": ((clipped_BT > unclipped_BT) * mask_BT).sum().item() / float(num_tokens),
    }
