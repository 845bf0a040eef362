"""Losses and estimators: pure functions on tensors.

Shape suffixes: B answers (or pairs), T tokens of an answer, V vocabulary. `mask_BT` is 1 on the tokens of an answer and 0
on padding; every mean is over the mask, so that padding wider changes nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, float]


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the mask; 0 for an empty mask."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def masked_whiten(values_BT: Tensor, mask_BT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Scaled to unit variance over the mask, and shifted to zero mean unless `keep_mean`. Padding becomes 0."""
    mean = masked_mean(values_BT, mask_BT)
    variance = masked_mean((values_BT - mean) ** 2, mask_BT)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened_BT + mean if keep_mean else whitened_BT) * mask_BT


def sft(logps_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood per answer token."""
    loss = -masked_mean(logps_BT, mask_BT)
    return loss, {"loss": loss.item(), "num_tokens": float(mask_BT.sum())}


# ---- preferences: one loss for each comparison of two answers -------------------------------------------------------


def bradley_terry(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """-log sigmoid(better - worse) [B]. Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1."""
    return -F.logsigmoid(better_B - worse_B)


def bradley_terry_margin(better_B: Tensor, worse_B: Tensor, margin_B: Tensor) -> Tensor:
    """-log sigmoid(better - worse - margin) [B]: the surer the annotators, the further apart. Touvron et al. 2023 (Llama 2), equation 2."""
    return -F.logsigmoid(better_B - worse_B - margin_B)


def bradley_terry_smoothed(better_B: Tensor, worse_B: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy [B] where a share `smoothing` of labels is taken to be turned round. Mitchell 2023 (conservative DPO), for rewards."""
    return -(1 - smoothing) * F.logsigmoid(better_B - worse_B) - smoothing * F.logsigmoid(worse_B - better_B)


def rao_kupper(better_B: Tensor, worse_B: Tensor, tie_B: Tensor, threshold: float) -> Tensor:
    """Bradley-Terry with ties [B]: rewards closer than about `threshold` are hard to tell apart. Rao and Kupper 1967, equation 2.3.

    P(better wins) = sigmoid(better - worse - threshold), and a tie is what neither wins. `tie_B` is bool.
    """
    margin_B = better_B - worse_B
    # 1 - sigmoid(a) - sigmoid(b) = (e^2t - 1) sigmoid(a) sigmoid(b) for a = margin - t, b = -margin - t: no difference of near-equals.
    log_p_better_B, log_p_worse_B = F.logsigmoid(margin_B - threshold), F.logsigmoid(-margin_B - threshold)
    return -torch.where(tie_B, math.log(math.expm1(2 * threshold)) + log_p_better_B + log_p_worse_B, log_p_better_B)


def centering(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """(better + worse)^2 [B], which keeps rewards around zero. Eisenstein et al. 2023, equation 2."""
    return (better_B + worse_B) ** 2


def kl_k1(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """log p/q per sampled token: Schulman's k1, the unbiased estimate of KL(p || q)."""
    return logps_BT - ref_logps_BT


def kl_k3(logps_BT: Tensor, ref_logps_BT: Tensor) -> Tensor:
    """q/p - 1 - log q/p per sampled token: Schulman's k3, never negative, of less variance than k1."""
    log_ratio_BT = ref_logps_BT - logps_BT
    return log_ratio_BT.exp() - 1 - log_ratio_BT


def group_advantages(scores_PG: Tensor) -> Tensor:
    """Each answer's score against those of the same prompt: (score - mean) / (standard deviation + 1e-4).

    Shao et al. 2024 (DeepSeekMath), section 4.1.2. A prompt's answers are [P, G]; one that is alone has advantage 0.
    """
    if scores_PG.shape[1] == 1:
        return torch.zeros_like(scores_PG)
    return (scores_PG - scores_PG.mean(1, keepdim=True)) / (scores_PG.std(1, keepdim=True) + 1e-4)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The share of the returns' variance over the mask that the values account for; 1 at most."""
    residual_variance = masked_mean((returns_BT - values_BT) ** 2, mask_BT)
    total_variance = masked_mean((returns_BT - masked_mean(returns_BT, mask_BT)) ** 2, mask_BT)
    return 1 - residual_variance / total_variance.clamp(min=1e-8)


def token_rewards(scores_B: Tensor, kl_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """-kl_coef x KL on every token, plus the score on the last real token. Ziegler et al. 2019, equation 2."""
    rewards_BT = -kl_coef * kl_BT * mask_BT
    last_index_B = mask_BT.sum(1).long().clamp(min=1) - 1
    return rewards_BT.scatter_add(1, last_index_B[:, None], scores_B[:, None].to(rewards_BT.dtype))


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages and returns [B, T] by generalised advantage estimation; 0 on padding. Schulman et al. 2016, equation 16.

    The value after the last real token is 0: an answer ends there.
    """
    advantages_BT = torch.zeros_like(rewards_BT)
    running_advantage_B = torch.zeros_like(rewards_BT[:, 0])
    next_value_B = torch.zeros_like(running_advantage_B)
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        # Padding stands to the right of an answer: over it nothing is carried and the next value stays 0.
        running_advantage_B = (delta_B + gamma * lam * running_advantage_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t] * mask_BT[:, t]
        advantages_BT[:, t] = running_advantage_B
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def ppo_policy(
    logps_BT: Tensor, old_logps_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, cliprange: float, num_tokens: Tensor | float
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate, summed over the mask and divided by `tokens`, the token count of the whole minibatch over all
    micro-batches and processes. Schulman et al. 2017, equation 7. The log-ratio is clamped to +-20.
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
    """Half the squared error of the value, the worse of clipped and unclipped, summed over the mask and divided by
    `tokens` as in `ppo_policy`. `cliprange` is in the units of the returns. Baselines' PPO2.
    """
    clipped_BT = old_values_BT + (values_BT - old_values_BT).clamp(-cliprange, cliprange)
    unclipped_BT, clipped_BT = (values_BT - returns_BT) ** 2, (clipped_BT - returns_BT) ** 2
    loss = 0.5 * (torch.maximum(unclipped_BT, clipped_BT) * mask_BT).sum() / num_tokens
    return loss, {
        "loss/value_avg": loss.item(),
        "val/clipfrac_avg": ((clipped_BT > unclipped_BT) * mask_BT).sum().item() / float(num_tokens),
    }
