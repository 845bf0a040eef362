"""The loss of a step's preferences under a reward model, its metrics and its gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mmrlhf.config import RewardConfig
from mmrlhf.models.processes import Accelerator
from mmrlhf.records import InputError, Preference
from mmrlhf.rewards.reward_model import RewardModel, by_group
from mmrlhf.training.reward_model import losses
from mmrlhf.training.reward_model.measured_rows import to_answer_group


def preference_loss(
    config: RewardConfig, preferences: Sequence[Preference], raw_scores_N: Tensor, untrained_scores_N: Tensor | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss and the metrics of some preferences, both summed over preferences.

    `raw_scores_N` holds the rewards of all their answers, in order. Each of the K (K - 1) / 2
    comparisons of a preference has a weight of one over their number. Ties are comparisons for
    rao_kupper only, and never count towards the other metrics: divide those by `ranked`, the total
    weight of untied comparisons. With `untrained_scores_N` the loss also has the mean squared
    distance of a preference's rewards from these.

    Raises InputError as `check_margins` does.
    """
    better_indices, worse_indices, ties, margins, weights, offset = [], [], [], [], [], 0
    check_margins(config, preferences)
    for p in preferences:
        comparisons = [c for c in p.comparisons if config.loss_type == "rao_kupper" or not c.is_tie]
        for c in comparisons:
            better_indices.append(offset + c.better)
            worse_indices.append(offset + c.worse)
            ties.append(c.is_tie)
            margins.append(c.margin or 0.0)
            weights.append(1 / len(comparisons))
        offset += len(p.answers)
    better_C, worse_C = raw_scores_N[better_indices], raw_scores_N[worse_indices]
    tie_C, margin_C, weight_C = (torch.tensor(v, device=raw_scores_N.device) for v in (ties, margins, weights))
    if config.loss_type == "bt_margin":
        loss_C = losses.bradley_terry_margin(better_C, worse_C, margin_C)
    elif config.loss_type == "bt_label_smoothing":
        loss_C = losses.bradley_terry_smoothed(better_C, worse_C, config.label_smoothing)
    elif config.loss_type == "rao_kupper":
        loss_C = losses.rao_kupper(better_C, worse_C, tie_C.bool(), config.tie_threshold)
    else:
        loss_C = losses.bradley_terry(better_C, worse_C)
    loss = (weight_C * (loss_C + config.center_rewards_coefficient * losses.centering(better_C, worse_C))).sum()
    distance = raw_scores_N.new_zeros(())
    if untrained_scores_N is not None:
        weight_N = torch.cat([raw_scores_N.new_full((len(p.answers),), 1 / len(p.answers)) for p in preferences])
        distance = (weight_N * losses.distance_to_untrained(raw_scores_N, untrained_scores_N)).sum()
        loss = loss + config.untrained_score_coefficient * distance
    with torch.no_grad():
        score_gap_C, untied_weight_C = better_C - worse_C, weight_C * ~tie_C.bool()
        metrics = {
            "loss": loss,
            "ranked": untied_weight_C.sum(),
            "accuracy": (untied_weight_C * (score_gap_C > 0)).sum(),
            "margin": (untied_weight_C * score_gap_C).sum(),
        }
        metrics["mean_reward"] = (untied_weight_C * (better_C + worse_C) / 2).sum()
        if untrained_scores_N is not None:
            metrics["distance_to_untrained"] = distance
    return loss, {k: float(v.detach()) for k, v in metrics.items()}


def check_margins(config: RewardConfig, preferences: Sequence[Preference]) -> None:
    """Raise InputError if loss_type needs margins and a row has none."""
    if config.loss_type != "bt_margin":
        return
    for row in preferences:
        if any(c.margin is None and not c.is_tie for c in row.comparisons):
            raise InputError(
                f"row {row.id} has no margin: loss_type bt_margin needs one in every row; add `margin`, or `ratings`"
            )


def compute_gradients(
    config: RewardConfig,
    accelerator: Accelerator,
    model: RewardModel,
    untrained: RewardModel | None,
    rows: Sequence[Preference],
    batch_size: int,
) -> dict[str, float]:
    """Compute the gradients of this process's rows, a few groups at a time; return its metrics.

    Added up over all processes, the metrics are means over their `batch_size` rows. The answers of
    a row share one forward and one backward pass of their prompt. With
    `untrained_score_coefficient`, scores far from those of `untrained` are penalised. Safe to rerun
    when out of memory: it starts by clearing the gradients.
    """
    model.role.clear_gradients()
    groups, untrained_scores = [to_answer_group(row) for row in rows], None
    if config.untrained_score_coefficient:
        assert untrained is not None
        with torch.no_grad():
            untrained_scores = by_group(untrained.raw_scores(groups), groups)
    metric_sums: Counter[str] = Counter()
    for row_indices, raw_scores_N in model.raw_scores(groups):
        untrained_N = torch.cat([untrained_scores[i] for i in row_indices]) if untrained_scores else None
        loss, metrics = preference_loss(config, [rows[i] for i in row_indices], raw_scores_N, untrained_N)
        accelerator.backward(loss / batch_size)
        metric_sums.update({k: v / batch_size for k, v in metrics.items()})
    return dict(metric_sums)
