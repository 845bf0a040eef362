"""Losses of direct preference optimisation: pure functions of log-ratios.

A log-ratio is log p(answer | prompt) of the policy minus that of the reference, summed over the
answer's tokens; times beta it is the answer's implicit reward. A gap is the log-ratio of the better
answer minus that of the worse one. Names are TRL's. Shape suffix: C comparisons.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.records import InputError

LOSS_TYPES = ("sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "bco_pair", "sft")
PER_TOKEN_LOSS_TYPES = ("sigmoid_norm", "ipo")
SMOOTHED_LOSS_TYPES = ("sigmoid", "sigmoid_norm", "robust")


@dataclass(frozen=True)
class LogRatios:
    """The log-ratios of the two answers of each comparison, and their lengths in tokens.

    With weighted tokens, log-ratios are weighted sums, and a length is the sum of the weights.
    """

    better_C: Tensor
    worse_C: Tensor
    better_length_C: Tensor
    worse_length_C: Tensor

    @property
    def gap_C(self) -> Tensor:
        return self.better_C - self.worse_C

    def for_loss(self, loss_type: str) -> LogRatios:
        """Return the log-ratios that a loss reads: per token for some, sums for the others."""
        if loss_type not in PER_TOKEN_LOSS_TYPES:
            return self
        one_C = torch.ones_like(self.better_length_C)
        return LogRatios(self.better_C / self.better_length_C, self.worse_C / self.worse_length_C, one_C, one_C)


def comparison_loss(loss_type: str, ratios: LogRatios, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return the loss [C] of each comparison, for every type but `sft`."""
    ratios = ratios.for_loss(loss_type)
    if loss_type in ("sigmoid", "sigmoid_norm"):
        return sigmoid(ratios.gap_C, beta, label_smoothing)
    if loss_type == "ipo":
        return ipo(ratios.gap_C, beta)
    if loss_type == "hinge":
        return hinge(ratios.gap_C, beta)
    if loss_type == "robust":
        return robust(ratios.gap_C, beta, label_smoothing)
    assert loss_type == "bco_pair"
    return bco_pair(ratios.better_C, ratios.worse_C, beta)


def sigmoid(gap_C: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta gap) [C]. Rafailov et al. 2023 (DPO), equation 7.

    With smoothing, the cross-entropy if a share of labels is flipped: Mitchell 2023 (conservative
    DPO). With gaps per token, the length-normalised DPO of Lambert et al. 2024 (Tulu 3).
    """
    return -(1 - label_smoothing) * F.logsigmoid(beta * gap_C) - label_smoothing * F.logsigmoid(-beta * gap_C)


def robust(gap_C: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """Return an unbiased estimate [C] of the loss if a share of the labels was flipped.

    Chowdhury et al. 2024 (robust DPO).
    """
    as_labelled_C, flipped_C = -F.logsigmoid(beta * gap_C), -F.logsigmoid(-beta * gap_C)
    return ((1 - label_smoothing) * as_labelled_C - label_smoothing * flipped_C) / (1 - 2 * label_smoothing)


def ipo(gap_C: Tensor, beta: float) -> Tensor:
    """Return (gap - 1 / (2 beta))^2 [C]. Azar et al. 2023 (IPO), equation 17; beta is its tau.

    The gap is per token, as the paper's authors compute it and TRL does.
    """
    return (gap_C - 1 / (2 * beta)) ** 2


def hinge(gap_C: Tensor, beta: float) -> Tensor:
    """Return max(0, 1 - beta gap) [C]. Zhao et al. 2023 (SLiC)."""
    return (1 - beta * gap_C).clamp(min=0)


def bco_pair(better_C: Tensor, worse_C: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta better) - log sigmoid(-beta worse) [C].

    Jung et al. 2024 (BCO) with reward shift 0, as in TRL. It judges each answer on its own.
    """
    return -F.logsigmoid(beta * better_C) - F.logsigmoid(-beta * worse_C)


def anchor(better_C: Tensor, beta: float) -> Tensor:
    """Return -log sigmoid(beta better) [C], which keeps the better answer likely.

    Wang et al. 2024 (mDPO), with anchor 0.
    """
    return -F.logsigmoid(beta * better_C)


# ---- settings ------------------------------------------------------------------------------------


def loss_weights(config: DPOConfig) -> dict[str, float]:
    """Return the weight of each loss type, in the order given.

    Raises InputError for an unknown or repeated type, and for weights that do not fit.
    """
    types = [name.strip() for name in config.loss_type.split(",")]
    for name in types:
        if name not in LOSS_TYPES:
            raise InputError(f"loss_type {name or config.loss_type!r} is not one of {', '.join(LOSS_TYPES)}: correct it")
        if types.count(name) > 1:
            raise InputError(f"loss_type names {name} twice: give it once, with its weight in loss_weights")
    if config.loss_weights is None:
        return dict.fromkeys(types, 1.0)
    words = [word.strip() for word in config.loss_weights.split(",")]
    try:
        weights = [float(word) for word in words]
    except ValueError:
        weights = [-1.0]
    if not all(0 <= weight < float("inf") for weight in weights):
        raise InputError(
            f"loss_weights {config.loss_weights!r} must be numbers from 0 up, separated by commas, such as 0.8,0.2,1"
        )
    if len(weights) != len(types):
        raise InputError(
            f"loss_weights has {len(weights)} numbers, and loss_type {len(types)} losses ({', '.join(types)}): give one for each"
        )
    if not any(weights):
        raise InputError("loss_weights are all 0, so nothing would be learnt: give at least one loss a weight")
    return dict(zip(types, weights, strict=True))


# ---- corrected answers ---------------------------------------------------------------------------


def changed_tokens(answer: Sequence[int], other: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return which tokens [T] of each of two answers differ from the other one, as booleans.

    The rest are matching blocks of a diff, as in RLHF-V (Yu et al. 2024, section 3.2). Words that
    were only removed mark no token of the answer without them.
    """
    is_changed = torch.ones(len(answer), dtype=torch.bool), torch.ones(len(other), dtype=torch.bool)
    for start, other_start, size in difflib.SequenceMatcher(
        None, list(answer), list(other), autojunk=False
    ).get_matching_blocks():
        is_changed[0][start : start + size] = False
        is_changed[1][other_start : other_start + size] = False
    return is_changed
