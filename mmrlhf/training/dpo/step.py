"""The loss of a step's preferences, its metrics and its gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.engine.scoring import grouped_hidden_states, token_logps
from mmrlhf.models.adapters import Role
from mmrlhf.training.dpo import losses
from mmrlhf.training.dpo.batch import PreferenceBatch
from mmrlhf.training.losses import Metrics, add_metrics, read_metrics

EQUAL_GAP = 1e-4
"""Difference of two answers' log-ratios, in nats, up to which it may be rounding: neither answer is
then preferred. Before the first step, policy and reference are the same."""


@dataclass(frozen=True)
class Counts:
    """Counts of a step over all processes, the divisors of losses and metrics."""

    rows: float
    image_pairs: float
    best_tokens: float
    """Tokens of the best answers."""
    tokens: float


def preference_loss(
    config: DPOConfig, batch: PreferenceBatch, rows: Sequence[int], logps_NT: Tensor, ref_logps_N: Tensor, counts: Counts
) -> tuple[Tensor, Metrics]:
    """Return the loss of some of a batch's rows, divided by global counts, and sums of metrics.

    `logps_NT` holds the policy's log-probs of the tokens of these rows' answers; those of other
    rows are not read. `ref_logps_N` holds the reference's weighted sums. Divide the metrics with
    `mean_metrics`.
    """
    logps_N, ratios_N = logps_NT.sum(1), (logps_NT * batch.token_weights_NT).sum(1) - ref_logps_N
    comparisons, image_pairs = batch.comparisons_of(rows), batch.image_pairs_of(rows)
    ratios, image_ratios = batch.log_ratios(ratios_N, comparisons), batch.log_ratios(ratios_N, image_pairs)
    weight_C, weights = batch.weight_C[comparisons], losses.loss_weights(config)

    terms: dict[str, Tensor] = {}
    for loss_type, weight in weights.items():
        if loss_type == "sft":
            terms["sft"] = -weight * logps_NT[batch.best_answers_of(rows)].sum() / counts.best_tokens
        else:
            loss_C = losses.comparison_loss(loss_type, ratios, config.beta, config.label_smoothing)
            terms[loss_type] = weight * (weight_C * loss_C).sum() / counts.rows
    main_type = next((loss_type for loss_type in weights if loss_type != "sft"), "sigmoid")
    if config.anchor_coefficient:
        anchor_C = losses.anchor(ratios.for_loss(main_type).better_C, config.beta)
        terms["anchor"] = config.anchor_coefficient * (weight_C * anchor_C).sum() / counts.rows
    if config.image_pairs != "none":
        image_loss_C = losses.comparison_loss(main_type, image_ratios, config.beta)
        terms["image_pairs"] = config.image_pair_coefficient * image_loss_C.sum() / counts.rows
    loss = torch.stack(list(terms.values())).sum()

    with torch.no_grad():
        better_C, worse_C = config.beta * ratios.better_C, config.beta * ratios.worse_C
        metrics = {
            "loss": loss,
            "rewards/accuracies": (weight_C * (ratios.gap_C > EQUAL_GAP)).sum(),
            "rewards/margins": (weight_C * (better_C - worse_C)).sum(),
            "rewards/chosen": (weight_C * better_C).sum(),
            "rewards/rejected": (weight_C * worse_C).sum(),
            "logps/chosen": (weight_C * batch.by_answer(logps_N)[batch.better_C[comparisons]]).sum(),
            "logps/rejected": (weight_C * batch.by_answer(logps_N)[batch.worse_C[comparisons]]).sum(),
        }
        if len(terms) > 1:
            metrics |= {f"loss/{name}": value for name, value in terms.items()}
        if config.image_pairs != "none":
            metrics["image_pairs/accuracies"] = (image_ratios.gap_C > EQUAL_GAP).sum()
            metrics["image_pairs/margins"] = config.beta * image_ratios.gap_C.sum()
    return loss, {name: value.detach() for name, value in metrics.items()}


def mean_metrics(sums: Mapping[str, float], counts: Counts) -> dict[str, float]:
    """Divide sums of metrics by rows or image pairs; losses are divided already."""
    metrics = {}
    for name, value in sums.items():
        count = 1.0 if name.startswith("loss") else counts.image_pairs if name.startswith("image_pairs") else counts.rows
        metrics[name] = value / count if count else float("nan")
    return metrics


def compute_gradients(
    config: DPOConfig,
    accelerator: Accelerator,
    policy: Role,
    batch: PreferenceBatch,
    ref_logps_N: Tensor,
    counts: Counts,
) -> dict[str, float]:
    """Accumulate the gradients of this process's rows, some rows at a time; return metric sums.

    The answers of a row share one forward and one backward pass of their prompt. Safe to rerun when
    out of memory: it starts by clearing the gradients.
    """
    policy.clear_gradients()
    metric_sums: Metrics = {}
    for rows, indices, hidden_NTD in grouped_hidden_states(policy, batch.completions, batch.prompts_per_row):
        width = hidden_NTD.shape[1]
        zeros_NT = torch.zeros_like(batch.token_weights_NT)
        selected_NT = token_logps(policy, batch.completions, hidden_NTD, indices)
        logps_NT = zeros_NT.index_put((indices[:, None], torch.arange(width, device=indices.device)), selected_NT)
        loss, metrics = preference_loss(config, batch, rows, logps_NT, ref_logps_N, counts)
        accelerator.backward(loss)
        add_metrics(metric_sums, metrics)
    return read_metrics(metric_sums)


def count(accelerator: Accelerator, batch: PreferenceBatch) -> Counts:
    """Count rows, image pairs and tokens over all processes."""
    tokens_N = batch.completions.mask_NT.sum(1)
    counts = (len(batch.answers_per_row), batch.is_image_pair_C.sum(), tokens_N[batch.is_best_N].sum(), tokens_N.sum())
    local = torch.tensor([float(count) for count in counts], device=tokens_N.device)
    return Counts(*accelerator.reduce(local, "sum").tolist())
