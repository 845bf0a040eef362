"""The optimiser steps of ppo: the losses of policy and critic on minibatches of prompts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.engine.scoring import hidden_states, logps, values
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.processes import sum_over_processes
from mmrlhf.training.losses import Metrics, add_metrics, read_metrics
from mmrlhf.training.optim import check_loss, optimizer_step
from mmrlhf.training.ppo import policy_losses
from mmrlhf.training.ppo.batch import PPOBatch, check_first_ratio
from mmrlhf.training.ppo.ptx import PTXBatch, PTXRows
from mmrlhf.training.ppo.roles import PPORoles
from mmrlhf.training.ppo.rollout import Rollout
from mmrlhf.training.row_order import random_minibatches
from mmrlhf.training.sft_batch import accumulate_sft_gradients
from mmrlhf.training.skipped_steps import Attempt


def update_roles(
    config: PPOConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    roles: PPORoles,
    rollout: Rollout,
    batch: PPOBatch,
    ptx_rows: PTXRows | None,
    step: int,
    attempt: Attempt,
) -> list[dict[str, float]]:
    """Train on a step's answers for num_ppo_epochs; return the metrics of each optimiser step.

    Raises NotFiniteError like `update_minibatch`; earlier updates of the step are kept.
    """
    num_processes, num_prompts = accelerator.num_processes, len(rollout.rows) * accelerator.num_processes
    num_updates = config.num_ppo_epochs * config.num_mini_batches
    updates: list[dict[str, float]] = []
    for epoch in range(config.num_ppo_epochs):
        # New groups of the prompts in every epoch, the same on any number of processes
        for group in random_minibatches(num_prompts, config.num_mini_batches, config.seed + 1000 * step + epoch):
            own = [i // num_processes for i in group if i % num_processes == accelerator.process_index]
            ptx = ptx_rows.batch(step * num_updates + len(updates)) if ptx_rows is not None else None
            attempt.batch["minibatch"] = torch.tensor(own, dtype=torch.long)
            attempt.rows = [*rollout.numbered_rows, *(ptx.rows if ptx is not None else ())]
            update = update_minibatch(
                config, accelerator, optimizer, roles, batch.select(own), len(group), ptx, attempt,
                is_on_policy=not updates and rollout.policy_version == step,
            )  # fmt: skip
            updates.append(update)
    return updates


def update_minibatch(
    config: PPOConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    roles: PPORoles,
    minibatch: PPOBatch,
    num_prompts: int,
    ptx: PTXBatch | None,
    attempt: Attempt,
    *,
    is_on_policy: bool,
) -> dict[str, float]:
    """Take an optimiser step on this process's share of `num_prompts`; return its metrics.

    `is_on_policy`: whether the current policy sampled the answers, so that sampling and scoring
    must agree. Raises NotFiniteError, on all processes, before it changes anything.
    """
    own_counts = torch.stack([minibatch.mask_NT.sum(), policy_mask(config, minibatch).sum()])
    num_tokens, num_policy_tokens = accelerator.reduce(own_counts, "sum")
    if not num_tokens:
        raise NotFiniteError("the answers have no tokens, so that means over them are not defined")
    aggregate = policy_losses.Aggregation(
        config.loss_type,
        num_tokens=num_policy_tokens.clamp(min=1),  # if all answers are cut off, the loss is 0
        num_answers=num_prompts * config.num_generations,
        max_tokens=config.response_length,
    )
    sums = roles.vlm.budget.retry_on_oom(compute_gradients, config, accelerator, roles, minibatch, aggregate, num_tokens, ptx)
    attempt.numbers |= {
        "loss": total_loss(sums),
        "num_tokens": float(num_tokens),
        "num_policy_tokens": float(aggregate.num_tokens),
        "num_answers": aggregate.num_answers,
        "num_ptx_tokens": float(ptx.num_tokens) if ptx is not None else 0.0,
    }
    update = sum_over_processes(sums)
    check_loss(total_loss(update))
    if is_on_policy and num_policy_tokens and config.dtype == "float32":
        check_first_ratio(update["val/ratio"])
    parameters = [p for role in roles.trained for p in role.parameters()]
    update["grad_norm"] = optimizer_step(accelerator, optimizer, parameters, config.max_grad_norm)
    return update


def policy_mask(config: PPOConfig, batch: PPOBatch) -> Tensor:
    """Return 1.0 on the tokens that the policy's loss averages over, 0.0 on others [N, T]."""
    if config.mask_truncated_completions:
        return batch.mask_NT * batch.completions.finished_N[:, None]
    return batch.mask_NT


def total_loss(metrics: Mapping[str, float]) -> float:
    """Return the sum of the losses, without their coefficients: finite if all of them are."""
    return sum(value for name, value in metrics.items() if name.startswith("loss/"))


def compute_gradients(
    config: PPOConfig,
    accelerator: Accelerator,
    roles: PPORoles,
    minibatch: PPOBatch,
    aggregate: policy_losses.Aggregation,
    num_tokens: Tensor,
    ptx: PTXBatch | None,
) -> dict[str, float]:
    """Compute a minibatch's gradients, a micro-batch of answers at a time; return metric sums.

    `aggregate` has the minibatch's counts over all processes, of what the policy learns from;
    `num_tokens` counts all tokens, for the value loss. Safe to rerun when out of memory: it starts
    by clearing the gradients. Each `backward` here covers the answers' tokens only; `hidden_states`
    runs the prompts' own once, after their last answer.
    """
    for role in roles.trained:
        role.clear_gradients()
    metric_sums: Metrics = {}
    policy_mask_NT = policy_mask(config, minibatch)
    for indices, hidden_NTD in hidden_states(roles.policy, minibatch.completions):
        width = hidden_NTD.shape[1]
        mask_NT, old_NT, ref_NT, advantages_NT = (
            tensor[indices, :width]
            for tensor in (policy_mask_NT, minibatch.old_logps_NT, minibatch.ref_logps_NT, minibatch.advantages_NT)
        )
        new_NT = logps(roles.policy, minibatch.completions, hidden_NTD, indices)
        weights_NT = None
        if config.corrects_importance:
            weights_NT = policy_losses.importance_weights(
                config.importance_sampling_level, old_NT, minibatch.completions.logps_NT[indices, :width], mask_NT,
                cap=config.vllm_importance_sampling_cap,
            )  # fmt: skip
        loss, metrics = policy_losses.ppo_policy(
            new_NT, old_NT, advantages_NT, mask_NT, aggregate,
            cliprange=config.cliprange, epsilon_high=config.epsilon_high, delta=config.delta,
            level=config.importance_sampling_level, weights_BT=weights_NT,
        )  # fmt: skip
        if config.kl_in_loss:
            kl_loss = aggregate(policy_losses.kl(config.penalized_kl, new_NT, ref_NT), mask_NT)
            loss, metrics["loss/kl_avg"] = loss + minibatch.kl_coef * kl_loss, kl_loss.detach()
        accelerator.backward(loss)
        add_metrics(metric_sums, metrics)
    if roles.critic is not None:
        for indices, hidden_NTD in hidden_states(roles.critic, minibatch.critic_completions):
            width = hidden_NTD.shape[1]
            mask_NT, old_NT, returns_NT = (
                tensor[indices, :width] for tensor in (minibatch.mask_NT, minibatch.values_NT, minibatch.returns_NT)
            )
            new_NT = values(roles.critic, minibatch.completions, hidden_NTD, indices)
            loss, metrics = policy_losses.ppo_value(new_NT, old_NT, returns_NT, mask_NT, minibatch.value_clip, num_tokens)
            accelerator.backward(config.vf_coef * loss)
            add_metrics(metric_sums, metrics)
    sums = read_metrics(metric_sums)
    if ptx is not None:
        sums["loss/ptx_avg"] = accumulate_sft_gradients(accelerator, roles.policy, ptx.batch, ptx.num_tokens, config.ptx_coef)
    return sums
