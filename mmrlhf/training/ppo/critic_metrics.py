"""Metrics of the two critics: the value model (`critic/...`) and the reward model.

The value model is the internal critic: it predicts rewards and is the baseline. The reward model is
the external one: it gives the rewards. All metrics are over the answers of all processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.models.processes import gather_object
from mmrlhf.training.ppo.batch import PPOBatch

LEAST_VALUE_STEP = 0.05
"""Share of the returns' scale that a value should be able to move by in a step."""

TIE_DECIMALS = 5
"""Decimal places, relative to the largest value, to which values are compared for ranks."""


def advantage_metrics(accelerator: Accelerator, batch: PPOBatch) -> dict[str, float]:
    """Return statistics of the advantages used in training, and how many are exactly 0."""
    metrics = token_statistics(accelerator, "critic/advantages", batch.advantages_NT, batch.mask_NT)
    is_zero_N = ((batch.advantages_NT == 0) | (batch.mask_NT == 0)).all(1)
    zero_share = torch.tensor([float(x) for x in gather_object(is_zero_N.tolist())]).mean().item()
    return {**metrics, "critic/advantages/zero_share": zero_share}


def value_metrics(accelerator: Accelerator, batch: PPOBatch) -> dict[str, float]:
    """Return statistics of a trained critic's values and of their targets, and their agreement.

    `critic/vf_explained_var` is the share of the returns' variance that the values explain.
    """
    values_NT, returns_NT, mask_NT = batch.values_NT, batch.returns_NT, batch.mask_NT
    values = token_statistics(accelerator, "critic/values", values_NT, mask_NT)
    returns = token_statistics(accelerator, "critic/returns", returns_NT, mask_NT)
    squared_error = _mean(accelerator, (returns_NT - values_NT) ** 2, mask_NT)
    explained = 1 - squared_error / max(returns["critic/returns/std"] ** 2, 1e-8)
    return {"critic/vf_explained_var": explained, **values, **returns}


def value_clip_note(config: PPOConfig, metrics: Mapping[str, float]) -> str:
    """Return a note if values may move by too little of the returns' scale in a step, or ""."""
    scale = math.hypot(metrics["critic/returns/mean"], metrics["critic/returns/std"])
    if config.cliprange_value_unit == "returns" or config.cliprange_value >= LEAST_VALUE_STEP * scale:
        return ""
    return (
        f"note: returns are about {scale:.3g}, and cliprange_value lets values move by {config.cliprange_value:g} in a step, so "
        "the critic learns slowly: set cliprange_value_unit returns, or lower the weights of reward_terms"
    )


def reward_model_metrics(batch: PPOBatch, has_critic: bool) -> dict[str, float]:
    """Return statistics of the reward model's own scores; nothing without fact_rm.

    With a critic, also the rank correlation of the scores with its values before an answer's last
    token, which follow all other tokens of the answer.
    """
    rows: list[tuple[float, float]] = []
    if "fact_rm" in batch.breakdowns[0].values:
        last_N1 = (batch.mask_NT.sum(1, keepdim=True).long() - 1).clamp(min=0)
        values = batch.values_NT.gather(1, last_N1)[:, 0].tolist()
        rows = [(float(item.values["fact_rm"]), v) for item, v in zip(batch.breakdowns, values, strict=True)]
    rows = gather_object(rows)
    if not rows:
        return {}
    scores, last_values = torch.tensor(rows, dtype=torch.float64).T
    metrics = {"reward_model/score/mean": scores.mean().item(), "reward_model/score/std": scores.std(correction=0).item()}
    if has_critic:
        metrics["critic/reward_model_rank_correlation"] = rank_correlation(last_values, scores)
    return metrics


def token_statistics(accelerator: Accelerator, name: str, values_NT: Tensor, mask_NT: Tensor) -> dict[str, float]:
    """Return mean, standard deviation, minimum and maximum over the mask, as NAME/mean etc."""
    mean = _mean(accelerator, values_NT, mask_NT)
    variance = _mean(accelerator, (values_NT.double() - mean) ** 2, mask_NT)
    inf, is_token_NT = float("inf"), mask_NT > 0
    bounds = torch.stack([values_NT.masked_fill(~is_token_NT, inf).min(), -values_NT.masked_fill(~is_token_NT, -inf).max()])
    least, negated_greatest = accelerator.gather(bounds[None]).min(0).values.tolist()
    return {
        f"{name}/mean": mean,
        f"{name}/std": math.sqrt(variance),
        f"{name}/min": least,
        f"{name}/max": -negated_greatest,
    }


def rank_correlation(first_N: Tensor, second_N: Tensor) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties; 0 if one does not vary.

    Numbers are ties if they are equal to TIE_DECIMALS places of the largest: a model's outputs for
    equal answers differ by rounding, which would otherwise decide ranks.
    """
    from scipy.stats import rankdata  # takes a second to load

    ranks = torch.stack([torch.from_numpy(rankdata(_rounded(values).cpu().numpy())) for values in (first_N, second_N)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    return float(centred[0] @ centred[1] / (norms[0] * norms[1])) if norms.min() > 0 else 0.0


def _rounded(values_N: Tensor) -> Tensor:
    """Return values as multiples of the largest absolute value, to TIE_DECIMALS places."""
    values_64 = values_N.double()
    return (values_64 / values_64.abs().max().clamp(min=torch.finfo(torch.float64).tiny)).round(decimals=TIE_DECIMALS)


def _mean(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor) -> float:
    """Return the mean over the mask, over all processes."""
    sums = accelerator.reduce(torch.stack([mask_NT.double().sum(), (values_NT.double() * mask_NT).sum()]), "sum")
    return float(sums[1] / sums[0].clamp(min=1))
