"""Losses of preferences: pure functions of rewards, one loss for each comparison of two answers.

Shape suffixes: B comparisons, N answers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(better_B: Tensor, worse_B: Tensor) -> Tensor:
    """Return -log sigmoid(better - worse) [B].

    Bradley and Terry 1952; Ouyang et al. 2022 (InstructGPT), equation 1.
    """
    return -F.logsigmoid(better_B - worse_B)


def bradley_terry_margin(better_B: Tensor, worse_B: Tensor, margin_B: Tensor) -> Tensor:
    """Return -log sigmoid(better - worse - margin) [B].

    A larger margin (more certain annotators) pushes the rewards further apart. Touvron et al. 2023
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
    """Return (score - untrained score)^2 [N], which keeps scores close to the untrained review."""
    return (scores_N - untrained_scores_N) ** 2
