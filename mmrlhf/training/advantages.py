"""From rewards to advantages: token rewards, GAE, group-relative advantages, whitening. Pure functions on tensors."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.training import advantages
from mmrlhf.training.losses import masked_mean


def masked_whiten(values_BT: Tensor, mask_BT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Scaled to unit variance over the mask, and shifted to zero mean unless `keep_mean`. Padding becomes 0."""
    mean = masked_mean(values_BT, mask_BT)
    variance = masked_mean((values_BT - mean) ** 2, mask_BT)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened_BT + mean if keep_mean else whitened_BT) * mask_BT


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


def whiten_across_processes(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """`losses.masked_whiten` with the mean and variance of all processes."""
    if accelerator.num_processes == 1:
        return advantages.masked_whiten(values_NT, mask_NT, keep_mean=keep_mean)
    sums = torch.stack([mask_NT.sum(), (values_NT * mask_NT).sum(), (values_NT**2 * mask_NT).sum()])
    count, total, sum_of_squares = accelerator.reduce(sums, "sum")
    mean = total / count
    whitened_NT = (values_NT - mean) * torch.rsqrt(sum_of_squares / count - mean**2 + 1e-8)
    return (whitened_NT + mean if keep_mean else whitened_NT) * mask_NT
