"""The factually augmented reward model, trained on preferences with facts about the image.

Facts are typed evidence before the question, or in the review turn after the answer (Sun et al.
2023, LLaVA-RLHF), with the same text and order for all answers to a prompt. `facts: none` is the
ablation. In training, some rows' facts are dropped or replaced, so that the model works with few
facts and does not trust all of them. A ranking of K answers is one row, and each of its comparisons
is weighted by one over their number (Ouyang et al. 2022, section 3.5). The reward is a scalar head
on the last token of the review turn; it starts from the model's own preference for "Yes" over "No".
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import RewardConfig
from mmrlhf.datasets import Records, read_preferences
from mmrlhf.datasets.balance import balance_lengths
from mmrlhf.facts import load_facts_template, read_facts
from mmrlhf.facts.corrupt import augment_facts
from mmrlhf.metrics.calibration import fit_temperature
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import random_head, yes_no_head
from mmrlhf.models.loading import load
from mmrlhf.models.policy import add_trained_adapter, check_adapter_setting
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Fact, InputError, Preference
from mmrlhf.rewards import checkpoint
from mmrlhf.rewards.probes import NOTHING_TO_INJECT, make_probes, make_training_pair, probe_rates
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training import losses
from mmrlhf.training.optim import batch_indices, load_optimizer, lr_multiplier, optimizer_step, optimizer_tensors, total_steps
from mmrlhf.training.row_checks import KeptChecks, Length, group_length, usable_rows
from mmrlhf.training.run import Run

NUM_PROBE_ROWS = 100
"""Number of rows that are probed with injected false claims."""
NUM_NOISE_ROWS = 512
"""Number of rows that supply facts about other images, to use as noise."""


def to_answer_group(preference: Preference) -> AnswerGroup:
    """Return a row as the group of answers that a reward model scores."""
    return AnswerGroup(preference.images, preference.prompt, preference.answers, preference.facts, preference.id)


def preference_loss(
    config: RewardConfig, preferences: Sequence[Preference], raw_scores_N: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss and the metrics of some preferences, both summed over preferences.

    `raw_scores_N` holds the rewards of all their answers, in order. Each of the K (K - 1) / 2
    comparisons of a preference has a weight of one over their number. Ties count towards the loss
    for rao_kupper only, and never towards the other metrics: divide those by `ranked`, the total
    weight of untied comparisons. Raises InputError if loss_type needs margins and a row has none.
    """
    better_indices, worse_indices, ties, margins, weights, offset = [], [], [], [], [], 0
    for p in preferences:
        comparisons = [c for c in p.comparisons if config.loss_type == "rao_kupper" or not c.is_tie]
        for c in comparisons:
            if config.loss_type == "bt_margin" and c.margin is None:
                raise InputError(
                    f"row {p.id} has no margin: loss_type bt_margin needs one in every row; add `margin`, or `ratings`"
                )
            better_indices.append(offset + c.better)
            worse_indices.append(offset + c.worse)
            ties.append(c.is_tie)
            margins.append(c.margin or 0.0)
            weights.append(1 / len(p.comparisons))
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
    with torch.no_grad():
        score_gap_C, untied_weight_C = better_C - worse_C, weight_C * ~tie_C.bool()
        metrics = {
            "loss": loss,
            "ranked": untied_weight_C.sum(),
            "accuracy": (untied_weight_C * (score_gap_C > 0)).sum(),
            "margin": (untied_weight_C * score_gap_C).sum(),
        }
        metrics["mean_reward"] = (untied_weight_C * (better_C + worse_C) / 2).sum()
    return loss, {k: float(v.detach()) for k, v in metrics.items()}


def train_reward_model(
    config: RewardConfig, preferences: Sequence[Preference] | None = None, held_out: Sequence[Preference] | None = None
) -> Path:
    """Train on `preferences`, or on the configured dataset; return the reward model's directory.

    Accuracy is reported on `held_out` (or eval_dataset_name); nothing is selected on it. Raises
    InputError if settings or data cannot be used.
    """
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    kept, kept_held_out = None, None
    if preferences is None:
        kept = KeptChecks(run.path / "rows.json", run.add_file)
        kept_held_out = KeptChecks(run.path / "eval_rows.json", run.add_file)
        facts = read_facts(config.facts_file) if config.facts_file else None
        preferences = read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
        if config.eval_dataset_name:
            held_out = read_preferences(config.eval_dataset_name, config.dataset_train_split, config.image_folder, facts)
    run.claim_rows(preferences)
    if held_out is not None:
        run.claim_rows(held_out, "eval")
    if run.is_finished:
        run.print_finished(run.path)
        return run.path
    preferences = _select_preferences(config, preferences)

    # 1. The role: an adapter, or the full language model, with a scalar head
    check_adapter_setting(config.adapter_path, config.tuning)
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    adapters = Adapters(vlm)
    if config.tuning == "lora":
        add_trained_adapter(adapters, "reward", config)
    else:
        vlm.model.base_model.get_decoder().requires_grad_(True)
    head = yes_no_head(vlm) if config.head_init == "yes_no" else random_head(vlm, config.seed)
    role = Role(adapters, "reward" if config.tuning == "lora" else None, head)
    model = RewardModel(
        role,
        config.facts,
        config.facts_position,
        load_facts_template(config.facts_template),
        config.max_facts_tokens,
        max_length=config.max_length,
    )
    lengths = PromptLengths(vlm, config.max_pixels)

    def lengths_of(row: Preference) -> list[Length]:
        return [group_length(model, lengths, to_answer_group(row))]

    preferences = usable_rows(preferences, config, config.dataset_name, lengths_of, lengths, run.console, kept)
    if held_out:
        name = config.eval_dataset_name or "the held-out rows"
        held_out = usable_rows(held_out, config, name, lengths_of, lengths, run.console, kept_held_out)
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    other_facts = [fact for i in range(min(len(preferences), NUM_NOISE_ROWS)) for fact in preferences[i].facts]

    # 2. Resume
    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    num_steps, start_step = total_steps(config, len(preferences), accelerator.num_processes), 0
    if resumed := run.resume():
        start_step, tensors, _ = resumed
        role.load_state_dict(tensors)
        load_optimizer(optimizer, tensors)

    # 3. Steps
    description = f"reward ({'with' if config.facts == 'given' else 'without'} facts)"
    with run.progress(num_steps, start_step, description) as progress_bar:
        for step in range(start_step, num_steps):
            rows = [preferences[i] for i in batch_indices(step, batch_size, len(preferences), config.seed)]
            local_rows, groups = [], []
            for p in rows[accelerator.process_index :: accelerator.num_processes]:
                row = _maybe_inject_claim(config, p, other_facts, step)
                group = replace(to_answer_group(row), facts=_augment_facts(config, row, other_facts, step))
                if (config.fact_noise or row is not p) and group_length(model, lengths, group).is_over:
                    row, group = p, to_answer_group(p)  # other facts or an added claim made it too long
                local_rows.append(row)
                groups.append(group)
            for param_group in optimizer.param_groups:
                param_group["lr"] = config.learning_rate * lr_multiplier(config, step, num_steps)
            sums = vlm.budget.retry_on_oom(
                _accumulate_gradients, config, accelerator, optimizer, model, local_rows, groups, batch_size
            )
            metrics = {k: accelerator.reduce(torch.tensor(v, device=vlm.device), "mean").item() for k, v in sums.items()}
            untied_weight = metrics.pop("ranked") or float("nan")  # ties alone say nothing about accuracy
            metrics |= {k: metrics[k] / untied_weight for k in ("accuracy", "margin", "mean_reward")}
            metrics["grad_norm"] = optimizer_step(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            metrics["learning_rate"] = optimizer.param_groups[0]["lr"]
            progress_bar.advance()
            run.log(step + 1, metrics, show=(step + 1) % config.logging_steps == 0)
            if (step + 1) % config.save_steps == 0 and step + 1 < num_steps:
                run.save_checkpoint(step + 1, {**role.state_dict(), **optimizer_tensors(optimizer)}, {})

    # 4. Normalise, calibrate and probe, then save
    if accelerator.is_main_process:
        _calibrate_and_save(model, run, held_out or preferences[: min(len(preferences), 256)], bool(held_out), num_steps, config)
    accelerator.wait_for_everyone()
    return run.path


def _select_preferences(config: RewardConfig, preferences: Sequence[Preference]) -> Sequence[Preference]:
    """Balance lengths if configured. Raises InputError if settings and data do not fit together."""
    if config.tuning == "full" and config.dtype != "float32":
        raise InputError("tuning full needs dtype float32: small steps vanish in bfloat16 weights; or use tuning lora")
    if config.balance_lengths:
        kept_indices = balance_lengths(preferences, config.seed)
        if not kept_indices:
            raise InputError(f"{config.dataset_name}: balance_lengths leaves no row; leave it out")
        if isinstance(preferences, Records):
            preferences = preferences.subset(kept_indices)
        else:
            preferences = [preferences[i] for i in kept_indices]
    if config.loss_type != "rao_kupper" and all(c.is_tie for row in preferences for c in row.comparisons):
        raise InputError(
            f"{config.dataset_name} has ties only, and only loss_type rao_kupper learns from ties: use it, or other rows"
        )
    return preferences


def _accumulate_gradients(
    config: RewardConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    model: RewardModel,
    rows: Sequence[Preference],
    groups: Sequence[AnswerGroup],
    batch_size: int,
) -> dict[str, float]:
    """Accumulate the gradients of this process's rows, a few groups at a time; return mean metrics.

    The answers of a row share one forward and one backward pass of their prompt. Safe to rerun when
    out of memory: it starts by clearing the gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    metric_sums: Counter[str] = Counter()
    for row_indices, raw_scores_N in model.raw_scores(groups):
        loss, metrics = preference_loss(config, [rows[i] for i in row_indices], raw_scores_N)
        accelerator.backward(loss / batch_size)
        metric_sums.update({k: v / len(rows) for k, v in metrics.items()})
    return dict(metric_sums)


def _calibrate_and_save(
    model: RewardModel,
    run: Run,
    reference_rows: Sequence[Preference],
    is_held_out: bool,
    num_steps: int,
    config: RewardConfig,
) -> None:
    """Set scale, temperature and probe rates from the reference rows, and save the reward model.

    Also sets the accuracy, if the rows were held out.
    """
    groups = [to_answer_group(p) for p in reference_rows]
    probes = make_probes(reference_rows[:NUM_PROBE_ROWS], seed=config.seed)
    with run.progress(len(groups) + len(probes), 0, "calibrate, and inject hallucinations") as progress_bar:
        margins = _calibrate(model, reference_rows, groups, progress_bar.advance)
        unlimited_model = replace(model, max_length=1 << 30)  # an added claim must not end a run that is done
        model.probes = probe_rates(unlimited_model, probes, progress_bar.advance)
    is_correct = margins > 0
    if is_held_out:
        model.accuracy = float(is_correct.mean()) if len(is_correct) else None
    checkpoint.save_reward_model(model, run.path, groups)
    result = {"steps": num_steps, "accuracy": model.accuracy, "temperature": model.temperature, "probes": model.probes}
    run.finish(result | {"right": is_correct.astype(float).tolist() if is_held_out else None})
    if model.probes:
        rates = ", ".join(f"{kind} {rate:.0%}" for kind, rate in model.probes.items())
        run.print(f"injected hallucinations that lower the score: {rates} (ppo asks for min_probe_detection_rate of each)")
    else:
        run.print(f"note: no hallucinations were injected: {NOTHING_TO_INJECT}")


def _calibrate(
    model: RewardModel, reference_rows: Sequence[Preference], groups: Sequence[AnswerGroup], advance: Callable[[int], None]
) -> np.ndarray:
    """Set the model's scale and temperature from the reference rows; return their margins.

    `advance` is called as in `RewardModel.score`.
    """
    scores = model.score(groups, advance)
    raw_scores_N = torch.tensor([score for group_scores in scores for score in group_scores])
    model.mean, model.std = raw_scores_N.mean().item(), max(raw_scores_N.std().item(), 1e-6)
    margins = score_margins(reference_rows, scores) / model.std
    model.temperature = fit_temperature(margins)
    return margins


def _maybe_inject_claim(config: RewardConfig, row: Preference, other_facts: Sequence[Fact], step: int) -> Preference:
    """Return the row or, with probability `injected_claim_rate`, a pair with an injected claim."""
    rng = np.random.default_rng([config.seed, 13, step, zlib.crc32(row.id.encode())])
    if rng.random() >= config.injected_claim_rate:
        return row
    return make_training_pair(row, other_facts, rng) or row  # None if its facts allow no false claim


def _augment_facts(config: RewardConfig, row: Preference, other_facts: Sequence[Fact], step: int) -> tuple[Fact, ...]:
    """Return the row's facts for a training step: some dropped, some replaced by noise."""
    if config.facts == "none" or not (config.fact_dropout or config.fact_noise):
        return row.facts
    rng = np.random.default_rng([config.seed, 17, step, zlib.crc32(row.id.encode())])
    return augment_facts(row.facts, other_facts, config.fact_dropout, config.fact_noise, rng)


def score_margins(preferences: Sequence[Preference], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """Return better score minus worse score of every comparison that is not a tie."""
    return np.array(
        [s[c.better] - s[c.worse] for p, s in zip(preferences, scores, strict=True) for c in p.comparisons if not c.is_tie]
    )
