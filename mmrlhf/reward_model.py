"""The factually augmented reward model: Bradley-Terry on preference pairs, with facts on the picture in the prompt.

Facts are typed evidence in front of the question or in the review turn after the answer (Sun et al. 2023, LLaVA-RLHF); the same
text and order for both answers of a pair. `facts: none` is the ablation. The reward is a scalar head on the last token of the
review turn, which starts from the model's own "Yes" against "No". Left out: margins, ties, label smoothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from mmrlhf import losses
from mmrlhf.config import RewardConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import read_preferences
from mmrlhf.records import Preference
from mmrlhf.rewards import Group, RewardModel, review_head
from mmrlhf.roles import Adapters, Role
from mmrlhf.run import Run, load_optimizer, optimizer_tensors
from mmrlhf.training import apply, learning_rate_factor, rows_of_step, total_steps
from mmrlhf.vlm import load


def group(pair: Preference) -> Group:
    return Group(pair.images, pair.prompt, (pair.chosen, pair.rejected), pair.facts, pair.id)


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

    # 1. The role: an adapter and a head on the base
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    adapters = Adapters(vlm)
    adapters.add("reward", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    role = Role(adapters, "reward", review_head(vlm))
    model = RewardModel(role, config.facts, config.facts_position, max_length=config.max_length)
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    # 2. Where a killed run stood
    size = config.per_device_train_batch_size * accelerator.num_processes
    total, first = total_steps(config, len(pairs), accelerator.num_processes), 0
    if found := run.resume():
        first, tensors, _ = found
        role.restore(tensors)
        load_optimizer(optimizer, tensors)

    # 3. Steps: every pair's two answers share one run of their prompt
    with run.progress(total, first, f"reward ({'with' if config.facts == 'given' else 'without'} facts)") as steps:
        for step in range(first, total):
            rows = [pairs[i] for i in rows_of_step(step, size, len(pairs), config.seed)]
            mine = rows[accelerator.process_index :: accelerator.num_processes]
            for options in optimizer.param_groups:
                options["lr"] = config.learning_rate * learning_rate_factor(config, step, total)

            def learn(mine: Sequence[Preference] = mine, rows: Sequence[Preference] = rows) -> dict[str, float]:
                """Gradients of this process's pairs, a micro-batch at a time."""
                optimizer.zero_grad(set_to_none=True)
                sums: Counter[str] = Counter()
                for part, raw in model.raw([group(p) for p in mine]):
                    raw_P2 = raw.view(-1, 2)
                    loss, metrics = losses.bradley_terry(raw_P2[:, 0], raw_P2[:, 1], config.center_rewards_coefficient)
                    accelerator.backward(loss * len(part) / len(rows))
                    sums.update({k: v * len(part) / len(mine) for k, v in metrics.items()})
                return dict(sums)

            sums = vlm.budget.within(learn)
            sums = {k: accelerator.reduce(torch.tensor(v, device=vlm.device), "mean").item() for k, v in sums.items()}
            norm = apply(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            steps.advance()
            sums |= {"grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]}
            run.log(step + 1, sums, show=(step + 1) % config.logging_steps == 0)
            if (step + 1) % config.save_steps == 0 and step + 1 < total:
                run.save(step + 1, {**role.tensors(), **optimizer_tensors(optimizer)}, {})

    # 4. Scale on a reference set, accuracy on pairs that were not trained on, and the artefact
    if accelerator.is_main_process:
        reference = held_out or pairs[: min(len(pairs), 256)]
        raw = torch.tensor(model.score([group(p) for p in reference]))
        model.mean, model.std = raw.mean().item(), max(raw.std().item(), 1e-6)
        right = (raw[:, 0] > raw[:, 1]).float()
        model.accuracy = right.mean().item() if held_out else None
        model.save(run.path)
        run.finish({"steps": total, "accuracy": model.accuracy, "right": right.tolist() if held_out else None})
    accelerator.wait_for_everyone()
    return run.path
