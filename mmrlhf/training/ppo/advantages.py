"""Turn rewards into advantages: token rewards, estimators, and how advantages are scaled.

These are pure functions on tensors; only `scale` and the functions it calls talk to other
processes.

Shape suffixes: N answers, P prompts, G answers to a prompt, T tokens of an answer. `mask_NT` is 1
on the tokens of an answer and 0 on padding.
"""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config.algorithm import AdvantageEstimator, AdvantageScaling


def estimate(
    estimator: AdvantageEstimator,
    rewards_NT: Tensor,
    values_NT: Tensor,
    mask_NT: Tensor,
    *,
    group_size: int,
    gamma: float,
    lam: float,
    scale_groups: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns [N, T] of answers in consecutive groups of `group_size`.

    `values_NT` holds zeros if there is no critic. An estimator only decides how rewards become
    advantages: whether a critic exists and where the KL goes are separate settings. Without
    `scale_groups`, grpo subtracts the group's mean and does not divide.
    """
    if estimator == "gae":
        return gae(rewards_NT, values_NT, mask_NT, gamma, lam)
    if estimator == "reinforce_plus_plus":
        # Hu et al. 2025: rewards to go, which `scale` then brings to mean 0
        return gae(rewards_NT, torch.zeros_like(values_NT), mask_NT, gamma, 1.0)[0], torch.zeros_like(values_NT)
    scores_PG = rewards_NT.sum(1).view(-1, group_size)
    if estimator == "rloo":
        advantages_PG = leave_one_out_advantages(scores_PG)
    else:
        advantages_PG = group_advantages(scores_PG) if scale_groups else centred(scores_PG)
    return advantages_PG.view(-1, 1) * mask_NT, torch.zeros_like(values_NT)


def scale(
    accelerator: Accelerator, scaling: AdvantageScaling, advantages_NT: Tensor, rewards_NT: Tensor, mask_NT: Tensor
) -> Tensor:
    """Scale the advantages of a step over all processes; `group` and `none` leave them as they are.

    `tokens` brings those of tokens to mean 0 and standard deviation 1, `answers` those of answers
    to standard deviation 1, and `batch` divides by the standard deviation of the answers' rewards.
    """
    if scaling == "tokens":
        return whiten(accelerator, advantages_NT, mask_NT)
    if scaling == "answers":
        return scale_answers(accelerator, advantages_NT, mask_NT)
    if scaling == "batch":
        return advantages_NT / (batch_std(accelerator, rewards_NT.sum(1)) + 1e-4)
    return advantages_NT


def token_rewards(scores_N: Tensor, kl_NT: Tensor, mask_NT: Tensor, kl_coef: float) -> Tensor:
    """Return -kl_coef * KL on every token, plus the score on the last one [N, T].

    Ziegler et al. 2019, equation 2.
    """
    rewards_NT = -kl_coef * kl_NT * mask_NT
    last_index_N = mask_NT.sum(1).long().clamp(min=1) - 1
    return rewards_NT.scatter_add(1, last_index_N[:, None], scores_N[:, None].to(rewards_NT.dtype))


def gae(rewards_NT: Tensor, values_NT: Tensor, mask_NT: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return advantages and returns [N, T] by generalised advantage estimation; 0 on padding.

    Schulman et al. 2016, equation 16. The value after the last token is 0: the answer ends there.
    """
    advantages_NT = torch.zeros_like(rewards_NT)
    running_advantage_N = torch.zeros_like(rewards_NT[:, 0])
    next_value_N = torch.zeros_like(running_advantage_N)
    for t in range(rewards_NT.shape[1] - 1, -1, -1):
        delta_N = rewards_NT[:, t] + gamma * next_value_N - values_NT[:, t]
        # Padding follows the answer: nothing carries over from it, and the next value stays 0
        # until the loop reaches the answer's last token.
        running_advantage_N = (delta_N + gamma * lam * running_advantage_N) * mask_NT[:, t]
        next_value_N = values_NT[:, t] * mask_NT[:, t]
        advantages_NT[:, t] = running_advantage_N
    return advantages_NT, (advantages_NT + values_NT) * mask_NT


def group_advantages(scores_PG: Tensor) -> Tensor:
    """Return (score - group mean) / (group standard deviation + 1e-4) [P, G].

    Shao et al. 2024 (DeepSeekMath), section 4.1.2. A prompt's only answer has advantage 0, as do
    equal answers, exactly.
    """
    if scores_PG.shape[1] == 1:
        return torch.zeros_like(scores_PG)
    scores_PG = scores_PG - scores_PG[:, :1]  # as in `centred`
    return (scores_PG - scores_PG.mean(1, keepdim=True)) / (scores_PG.std(1, keepdim=True) + 1e-4)


def leave_one_out_advantages(scores_PG: Tensor) -> Tensor:
    """Return score - mean of the other answers' scores [P, G]; 0 for a prompt's only answer.

    Ahmadian et al. 2024 (RLOO). That is the distance from the mean of all of them,
    times G / (G - 1), so equal answers have advantage 0 exactly.
    """
    group_size = scores_PG.shape[1]
    return centred(scores_PG) * (group_size / max(1, group_size - 1))


def centred(scores_PG: Tensor) -> Tensor:
    """Return score - group mean [P, G]; exactly 0 in a group of equal scores."""
    # In float32 the mean of eight times 100.1 is not 100.1. Differences from the first are exact 0.
    scores_PG = scores_PG - scores_PG[:, :1]
    return scores_PG - scores_PG.mean(1, keepdim=True)


def rms(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor) -> float:
    """Return the root mean square over the mask, over all processes."""
    values_64, mask_64 = values_NT.double(), mask_NT.double()
    count, squares = accelerator.reduce(torch.stack([mask_64.sum(), (values_64**2 * mask_64).sum()]), "sum")
    return math.sqrt(float(squares / count))


def whiten(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Scale to unit variance over the mask and, unless `keep_mean`, shift to zero mean.

    Mean and variance are those over all processes. Padding becomes 0.
    """
    # Sums in float64: in float32 the mean of equal values is not that value, and their difference,
    # a rounding error, would be scaled up. Two passes, because E[x^2] - E[x]^2 cancels as well.
    values_64, mask_64 = values_NT.double(), mask_NT.double()
    count, total = accelerator.reduce(torch.stack([mask_64.sum(), (values_64 * mask_64).sum()]), "sum")
    mean = total / count
    variance = accelerator.reduce(((values_64 - mean) ** 2 * mask_64).sum(), "sum") / count
    whitened_64 = (values_64 - mean) * torch.rsqrt(variance + 1e-8)
    return ((whitened_64 + mean if keep_mean else whitened_64) * mask_64).to(values_NT.dtype)


def scale_answers(accelerator: Accelerator, advantages_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Divide advantages that are equal on all tokens of an answer by their root mean square.

    An answer counts once, long or short, over all processes. Groups of advantages have mean 0
    already, and an advantage of 0 stays 0. It is TRL's `normalize_advantages` for rloo, and GDPO's
    last step (Liu et al. 2026): over a batch, sums of group-normalised rewards vary with the number
    of functions and their weights.
    """
    first_64, has_tokens_64 = advantages_NT[:, 0].double(), mask_NT[:, 0].double()
    sums = accelerator.reduce(torch.stack([has_tokens_64.sum(), (first_64**2 * has_tokens_64).sum()]), "sum")
    return advantages_NT * torch.rsqrt(sums[1] / sums[0] + 1e-8).to(advantages_NT.dtype)


def batch_std(accelerator: Accelerator, scores_N: Tensor) -> Tensor:
    """Return the standard deviation (unbiased) of scores over all processes; 0 for one score."""
    scores_64 = scores_N.double()
    count, total = accelerator.reduce(torch.stack([torch.ones_like(scores_64).sum(), scores_64.sum()]), "sum")
    squares = accelerator.reduce(((scores_64 - total / count) ** 2).sum(), "sum")
    return torch.sqrt(squares / (count - 1).clamp(min=1)).to(scores_N.dtype)
