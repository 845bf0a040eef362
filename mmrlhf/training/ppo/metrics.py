"""The metrics that PPO logs at each step, named as in TRL if it has them; see docs/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import torch
from accelerate import Accelerator

from mmrlhf.config import PPOConfig
from mmrlhf.models.image_features import GIB
from mmrlhf.models.processes import gather_object, gather_rows
from mmrlhf.models.vlm import VLM
from mmrlhf.rewards.claim_rewards import ClaimScorer, counts_claims
from mmrlhf.rewards.ledger import ledger_rows, values_by_name
from mmrlhf.rewards.length_bounds import LENGTH_BOUNDS
from mmrlhf.rewards.monitors import claim_hacking_metrics, hacking_metrics, verdict_rates
from mmrlhf.rewards.reward_clip import REWARD_CLIP
from mmrlhf.training.memory import peak_memory
from mmrlhf.training.monitor import (
    CLAIM_WARNINGS,
    CLIPPED_KEY,
    LOGP_DIFFERENCE,
    LOGP_DIFFERENCE_KEY,
    ROLLOUT_WARNINGS,
    ZERO_STD_KEY,
)
from mmrlhf.training.ppo import critic_metrics, policy_losses
from mmrlhf.training.ppo.batch import PPOBatch
from mmrlhf.training.ppo.roles import PPORoles
from mmrlhf.training.run import Run
from mmrlhf.training.sampled_answers import sample_rows

PRINTED_METRICS = {
    "reward": "objective/scores",
    "KL": "objective/kl",
    "entropy": "policy/entropy_avg",
    "length": "completions/mean_length",
    "clipped": "policy/clipfrac_avg",
    "policy loss": "loss/policy_avg",
    "value loss": "loss/value_avg",
    "grad norm": "grad_norm",
}
"""Columns of the table on the screen -> keys of metrics.jsonl, which also has all others."""


def step_metrics(
    config: PPOConfig,
    accelerator: Accelerator,
    roles: PPORoles,
    batch: PPOBatch,
    updates: Sequence[Mapping[str, float]],
    policy_version: int,
) -> dict[str, float]:
    """Return a step's metrics over all processes: rollout, rewards, critic and optimiser steps."""
    metrics = rollout_metrics(config, batch) | reward_metrics(batch, config.num_generations, roles.claim_scorer)
    if roles.aggregation.length_bounds is not None:
        outcomes = gather_object(
            [(s.num_tokens, b.terms[LENGTH_BOUNDS]) for s, b in zip(batch.samples, batch.breakdowns, strict=True)]
        )
        metrics |= roles.aggregation.length_bounds.metrics(*zip(*outcomes, strict=True))
    if roles.aggregation.reward_clip is not None:
        metrics |= roles.aggregation.reward_clip.metrics(gather_object([b.terms[REWARD_CLIP] for b in batch.breakdowns]))
    num_finished = accelerator.reduce(batch.completions.finished_N.sum().float(), "sum").item()
    return {
        **metrics,
        "val/num_eos_tokens": num_finished,
        "objective/kl_coef": batch.kl_coef,
        **({} if config.samples_locally else sampling_metrics(batch, policy_version)),
        **critic_metrics.advantage_metrics(accelerator, batch),
        **(critic_metrics.value_metrics(accelerator, batch) if roles.critic is not None else {}),
        **critic_metrics.reward_model_metrics(batch, has_critic=roles.critic is not None),
        **update_metrics(updates),
    }


def update_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means over a step's optimiser steps, and the first ratio; {} if there were none."""
    if not updates:
        return {}
    means = {k: sum(update[k] for update in updates) / len(updates) for k in updates[0]}
    return {**means, "val/ratio_first": updates[0]["val/ratio"]}


def stop_at_max_kl(config: PPOConfig, batch: PPOBatch, step: int) -> str:
    """Return why the run stops if the KL of a step's answers is above max_kl, else ""."""
    if config.max_kl is None:
        return ""
    kl = rollout_metrics(config, batch)["objective/kl"]
    if not kl > config.max_kl:
        return ""
    return (
        f"stopped at step {step + 1}: its answers have a KL to the reference of {kl:.4g} nats, above max_kl {config.max_kl:g}; "
        "it was not trained on"
    )


def rollout_metrics(config: PPOConfig, batch: PPOBatch) -> dict[str, float]:
    """Return means over the answers of all processes: KL, entropy, scores, lengths.

    objective/kl is always the k1 estimate; objective/non_score_reward is the KL's contribution to
    the reward, by the estimator used in training: 0 if the KL is in the loss.
    """
    mask_NT, entropy_NT = batch.mask_NT, batch.completions.entropy_NT
    kl_NT = policy_losses.kl_k1(batch.old_logps_NT, batch.ref_logps_NT)
    penalty_NT = torch.zeros_like(kl_NT)
    if not config.kl_in_loss:
        penalty_NT = -batch.kl_coef * policy_losses.kl(config.penalized_kl, batch.old_logps_NT, batch.ref_logps_NT)
    sums_N4 = torch.stack([(x_NT * mask_NT).sum(1) for x_NT in (kl_NT, entropy_NT, penalty_NT, torch.ones_like(mask_NT))], 1)
    rows = gather_object([(*sums, score) for sums, score in zip(sums_N4.tolist(), batch.scores, strict=True)])
    columns = list(zip(*rows, strict=True))
    kl, entropy, penalty, length, score = map(fmean, columns)
    return {
        "objective/kl": kl,
        "objective/entropy": entropy,
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": score + penalty,
        "objective/scores": score,
        "policy/entropy_avg": entropy / length if length else 0.0,
        "completions/mean_length": length,
        "completions/min_length": min(columns[3]),
        "completions/max_length": max(columns[3]),
    }


def sampling_metrics(batch: PPOBatch, version: int) -> dict[str, float]:
    """Return the difference of the engine's and the trainer's log-probs of sampled tokens, in nats.

    They are over the tokens of all processes. The answers of a step are all of one `version` of the
    policy.
    """
    log_ratio_NT = batch.old_logps_NT - batch.completions.logps_NT
    is_token_NT = batch.mask_NT.bool()
    log_ratios = log_ratio_NT[is_token_NT].double()
    differences, ratios = log_ratios.abs(), log_ratios.clamp(max=policy_losses.MAX_LOG_RATIO).exp()
    own = (len(log_ratios), *((float(v.sum()), float(v.max())) if len(v) else (0.0, 0.0) for v in (differences, ratios)))
    counts, of_differences, of_ratios = zip(*gather_object([own]), strict=True)
    if not (num_tokens := sum(counts)):
        return {}
    return {
        "sampling/policy_version": float(version),
        LOGP_DIFFERENCE_KEY: sum(total for total, _ in of_differences) / num_tokens,
        "sampling/logp_difference/max": max(largest for _, largest in of_differences),
        "sampling/importance_sampling_ratio/mean": sum(total for total, _ in of_ratios) / num_tokens,
        "sampling/importance_sampling_ratio/max": max(largest for _, largest in of_ratios),
    }


def reward_metrics(batch: PPOBatch, group_size: int, claim_scorer: ClaimScorer | None) -> dict[str, float]:
    """Return each reward function's mean and standard deviation, signs of reward hacking, and
    verdicts on claims.

    They are over the answers of all processes.
    """
    samples = gather_object([replace(sample, images=(), prompt=(), facts=(), meta={}) for sample in batch.samples])
    rewards = gather_object([(breakdown.total, breakdown.weighted_values) for breakdown in batch.breakdowns])
    metrics: dict[str, float] = {}
    for name, values in values_by_name(weighted for _, weighted in rewards).items():
        metrics |= {f"rewards/{name}/mean": fmean(values), f"rewards/{name}/std": stdev(values) if len(values) > 1 else 0.0}
    totals = [total for total, _ in rewards]
    metrics |= hacking_metrics(samples, totals, group_size)
    metrics[CLIPPED_KEY] = fmean(not sample.finished for sample in samples)
    if group_size > 1:
        groups = [totals[start : start + group_size] for start in range(0, len(totals), group_size)]
        metrics[ZERO_STD_KEY] = fmean(len(set(group)) == 1 for group in groups)
    if claim_scorer is not None:
        answers = [replace(answer, images=(), facts=()) for answer in claim_scorer.extract(batch.samples)]
        metrics |= claim_hacking_metrics(gather_object(answers))
        for name in claim_scorer.verifier_names:
            verdicts = gather_object(claim_scorer.verdicts(batch.samples, name))
            metrics |= verdict_rates([v.value for of_answer in verdicts for v in of_answer], len(verdicts), name)
    return metrics


def possible_warnings(config: PPOConfig) -> tuple[str, ...]:
    """Return the warnings that a run's own answers can raise."""
    of_answers = tuple(name for name in ROLLOUT_WARNINGS if name not in CLAIM_WARNINGS or counts_claims(config))
    return of_answers if config.samples_locally else (*of_answers, LOGP_DIFFERENCE)


def system_metrics(vlm: VLM, estimated_bytes: int) -> dict[str, float]:
    """Return the images encoded by all processes, and the peak memory of one with its estimate."""
    own = (vlm.image_encodes, vlm.encoder.cache.counters.reencodes, peak_memory())
    encodes, reencodes, peaks = zip(*gather_object([own]), strict=True)
    return {
        "image_encodes": float(sum(encodes)),
        "image_reencodes": float(sum(reencodes)),
        "memory/peak_gib": max(peaks) / GIB,
        "memory/planned_gib": estimated_bytes / GIB,
    }


def progress_metrics(step: int, num_answers: int, start_time: float, learning_rate: float) -> dict[str, float]:
    """Return the answers per second of a step, the learning rate, and the answers so far.

    `num_answers` is that of a step, over all processes; `start_time` is `time.time()`.
    """
    return {
        "eps": num_answers / max(time.time() - start_time, 1e-6),
        "lr": learning_rate,
        "episode": float((step + 1) * num_answers),
    }


def print_memory(run: Run, estimated_bytes: int) -> None:
    """Print the peak memory of the first step with its estimate."""
    run.print(
        f"memory: peak {peak_memory() / GIB:.2f} GiB, estimated {estimated_bytes / GIB:.2f} GiB "
        "(`mmrlhf plan ppo`, which leaves out the process itself)"
    )


def log_step(
    config: PPOConfig,
    run: Run,
    roles: PPORoles,
    batch: PPOBatch,
    metrics: Mapping[str, float],
    step: int,
    is_logging_step: bool,
) -> None:
    """Write metrics and ledger and, at logging steps, print the main metrics and samples."""
    run.log(step + 1, metrics)
    scorer = roles.claim_scorer
    claim_rows = scorer.ledger_rows(batch.samples) if scorer is not None and scorer.verifier_names else None
    rows = ledger_rows(batch.samples, batch.breakdowns, batch.rewards_NT.sum(1).tolist(), claim_rows)
    groups = [rows[i : i + config.num_generations] for i in range(0, len(rows), config.num_generations)]
    run.log_ledger(step + 1, [row for group in gather_rows(groups) for row in group])
    if step == 0 and config.length_bounds == "auto":
        lower, upper = (f"{metrics[f'length_bounds/{name}']:.0f}" for name in ("lower", "upper"))
        run.print(f"length bounds: {lower} to {upper} tokens, the 2% and 98% quantiles of the reference's answers in this step")
    if step == 0 and roles.critic is not None and (note := critic_metrics.value_clip_note(config, metrics)):
        run.print(note)
    if not is_logging_step:
        return
    run.print_row(step + 1, {title: metrics.get(key) for title, key in PRINTED_METRICS.items()})
    if config.num_sample_generations:
        run.log_samples(step + 1, sample_rows(run, batch.samples, batch.scores, rows, config.num_sample_generations))
