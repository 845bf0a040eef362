"""The factually augmented reward model: trained on preferences, with facts on the picture in its prompt.

Facts are typed evidence in front of the question or in the review turn after the answer (Sun et al. 2023, LLaVA-RLHF); the same
text and order for all answers to a prompt. `facts: none` is the ablation. In training some rows' facts are thinned out or wrong, so that
the model works with few and does not believe all. A ranking of K answers counts as one row: each of its comparisons weighs one over their
number (Ouyang et al. 2022, section 3.5). The reward is a scalar head on the last token of the review turn, which starts from
the model's own "Yes" against "No".
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf import artefact, losses
from mmrlhf.balance import balance_lengths
from mmrlhf.calibration import fit_temperature
from mmrlhf.config import RewardConfig
from mmrlhf.damage import unsteady
from mmrlhf.facts import read_facts, template_text
from mmrlhf.formats import Records, read_preferences
from mmrlhf.loading import load
from mmrlhf.probe import learnt, plant, probe_rates
from mmrlhf.records import Fact, InputError, Preference
from mmrlhf.rewards import Group, RewardModel, random_head, review_head
from mmrlhf.roles import Adapters, Role
from mmrlhf.run import Run, load_optimizer, optimizer_tensors
from mmrlhf.training import apply, learning_rate_factor, rows_of_step, total_steps

PROBED = 100
"""Rows that false claims are planted in."""
NOISE_FROM = 512
"""Rows whose facts serve as another picture's."""


def group(preference: Preference) -> Group:
    return Group(preference.images, preference.prompt, preference.answers, preference.facts, preference.id)


def compared(config: RewardConfig, preferences: Sequence[Preference], raw_N: Tensor) -> tuple[Tensor, dict[str, float]]:
    """The loss of some preferences, given the rewards of all their answers in order, and what is logged; both summed over preferences.

    Each of a preference's K (K - 1) / 2 comparisons weighs one over their number. Ties count for rao_kupper only, and never for what
    is logged, which is to be divided by `ranked`, the weight of the rest. Raises InputError where margins are asked for and a row has none.
    """
    better, worse, tie, margin, weight, start = [], [], [], [], [], 0
    for p in preferences:
        counted = [c for c in p.comparisons if config.loss_type == "rao_kupper" or not c.tie]
        for c in counted:
            if config.loss_type == "margin" and c.margin is None:
                raise InputError(f"row {p.id} has no margin: loss_type margin needs one in every row; add `margin`, or `ratings`")
            better.append(start + c.better)
            worse.append(start + c.worse)
            tie.append(c.tie)
            margin.append(c.margin or 0.0)
            weight.append(1 / len(p.comparisons))
        start += len(p.answers)
    better_C, worse_C = raw_N[better], raw_N[worse]
    tie_C, margin_C, weight_C = (torch.tensor(v, device=raw_N.device) for v in (tie, margin, weight))
    if config.loss_type == "margin":
        loss_C = losses.bradley_terry_margin(better_C, worse_C, margin_C)
    elif config.loss_type == "smoothed":
        loss_C = losses.bradley_terry_smoothed(better_C, worse_C, config.label_smoothing)
    elif config.loss_type == "rao_kupper":
        loss_C = losses.rao_kupper(better_C, worse_C, tie_C.bool(), config.tie_threshold)
    else:
        loss_C = losses.bradley_terry(better_C, worse_C)
    loss = (weight_C * (loss_C + config.center_rewards_coefficient * losses.centering(better_C, worse_C))).sum()
    with torch.no_grad():
        gap_C, ranked_C = better_C - worse_C, weight_C * ~tie_C.bool()
        told = {
            "loss": loss,
            "ranked": ranked_C.sum(),
            "accuracy": (ranked_C * (gap_C > 0)).sum(),
            "margin": (ranked_C * gap_C).sum(),
        }
        told["mean_reward"] = (ranked_C * (better_C + worse_C) / 2).sum()
    return loss, {k: float(v.detach()) for k, v in told.items()}


def reward(config: RewardConfig, pairs: Sequence[Preference] | None = None, held_out: Sequence[Preference] | None = None) -> Path:
    """Train on `pairs`, or on the configured data set; returns the artefact's directory (`output_dir`).

    `held_out` (or eval_dataset_name) is what accuracy is reported on; nothing is selected on it.
    """
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process)
    if run.finished:
        return run.path
    if pairs is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        pairs = read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
        if config.eval_dataset_name:
            held_out = read_preferences(config.eval_dataset_name, config.dataset_train_split, config.image_folder, facts)

    if config.balance_lengths:
        kept = balance_lengths(pairs, config.seed)
        if not kept:
            raise InputError(f"{config.dataset_name}: balance_lengths leaves no row; leave it out")
        pairs = pairs.only(kept) if isinstance(pairs, Records) else [pairs[i] for i in kept]
    if config.loss_type != "rao_kupper" and all(c.tie for i in range(min(len(pairs), NOISE_FROM)) for c in pairs[i].comparisons):
        raise InputError(
            f"{config.dataset_name} has ties only, from which just loss_type rao_kupper learns: give it, or other rows"
        )
    if config.train == "full" and config.dtype != "float32":
        raise InputError("train full needs dtype float32: small steps vanish in bfloat16 weights; or use train lora")

    # 1. The role: an adapter, or the language model whole, and a head
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    adapters = Adapters(vlm)
    if config.train == "lora":
        adapters.add("reward", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    else:
        vlm.model.base_model.get_decoder().requires_grad_(True)
    head = review_head(vlm) if config.head_init == "review" else random_head(vlm, config.seed)
    role = Role(adapters, "reward" if config.train == "lora" else None, head)
    model = RewardModel(
        role,
        config.facts,
        config.facts_position,
        template_text(config.facts_template),
        config.facts_budget,
        max_length=config.max_length,
    )
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    others = [fact for i in range(min(len(pairs), NOISE_FROM)) for fact in pairs[i].facts]

    # 2. Where a killed run stood
    size = config.per_device_train_batch_size * accelerator.num_processes
    total, first = total_steps(config, len(pairs), accelerator.num_processes), 0
    if found := run.resume():
        first, tensors, _ = found
        role.restore(tensors)
        load_optimizer(optimizer, tensors)

    # 3. Steps: a row's answers share one run of their prompt
    with run.progress(total, first, f"reward ({'with' if config.facts == 'given' else 'without'} facts)") as steps:
        for step in range(first, total):
            rows = [pairs[i] for i in rows_of_step(step, size, len(pairs), config.seed)]
            mine = [_with_planted(config, p, others, step) for p in rows[accelerator.process_index :: accelerator.num_processes]]
            for options in optimizer.param_groups:
                options["lr"] = config.learning_rate * learning_rate_factor(config, step, total)

            groups = [replace(group(p), facts=_unsteady(config, p, others, step)) for p in mine]

            def learn(mine: Sequence[Preference] = mine, groups: Sequence[Group] = groups) -> dict[str, float]:
                """Gradients of this process's rows, a micro-batch at a time."""
                optimizer.zero_grad(set_to_none=True)
                sums: Counter[str] = Counter()
                for part, raw in model.raw(groups):
                    loss, metrics = compared(config, [mine[i] for i in part], raw)
                    accelerator.backward(loss / size)
                    sums.update({k: v / len(mine) for k, v in metrics.items()})
                return dict(sums)

            sums = vlm.budget.within(learn)
            sums = {k: accelerator.reduce(torch.tensor(v, device=vlm.device), "mean").item() for k, v in sums.items()}
            ranked = sums.pop("ranked") or float("nan")  # of ties alone nothing can be said
            sums |= {k: sums[k] / ranked for k in ("accuracy", "margin", "mean_reward")}
            norm = apply(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            steps.advance()
            sums |= {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
            run.log(step + 1, sums, show=(step + 1) % config.logging_steps == 0)
            if (step + 1) % config.save_steps == 0 and step + 1 < total:
                run.save(step + 1, {**role.tensors(), **optimizer_tensors(optimizer)}, {})

    # 4. Scale on a reference set; accuracy, calibration and probes on rows that were not trained on; the artefact
    if accelerator.is_main_process:
        reference = held_out or pairs[: min(len(pairs), 256)]
        groups = [group(p) for p in reference]
        scores = model.score(groups)
        raw = torch.tensor([score for row in scores for score in row])
        model.mean, model.std = raw.mean().item(), max(raw.std().item(), 1e-6)
        margins = margins_of(reference, scores) / model.std
        right = margins > 0
        model.temperature = fit_temperature(margins)
        if held_out:
            model.accuracy = float(right.mean()) if len(right) else None
        model.probes = probe_rates(model, plant(reference[:PROBED], seed=config.seed))
        artefact.save(model, run.path, groups)
        result = {"steps": total, "accuracy": model.accuracy, "temperature": model.temperature, "probes": model.probes}
        run.finish(result | {"right": right.astype(float).tolist() if held_out else None})
    accelerator.wait_for_everyone()
    return run.path


def _with_planted(config: RewardConfig, row: Preference, others: Sequence[Fact], step: int) -> Preference:
    """The row, or now and then what planted claims make of it."""
    rng = np.random.default_rng([config.seed, 13, step, zlib.crc32(row.id.encode())])
    return (learnt(row, others, rng) if rng.random() < config.planted_claims else None) or row


def _unsteady(config: RewardConfig, row: Preference, others: Sequence[Fact], step: int) -> tuple[Fact, ...]:
    """A row's facts as a step of training shows them."""
    if config.facts == "none" or not (config.fact_dropout or config.fact_noise):
        return row.facts
    rng = np.random.default_rng([config.seed, 17, step, zlib.crc32(row.id.encode())])
    return unsteady(row.facts, others, config.fact_dropout, config.fact_noise, rng)


def margins_of(preferences: Sequence[Preference], scores: Sequence[Sequence[float]]) -> np.ndarray:
    """The better answer's score less the worse one's of every comparison that is no tie."""
    return np.array(
        [s[c.better] - s[c.worse] for p, s in zip(preferences, scores, strict=True) for c in p.comparisons if not c.tie]
    )
