"""Supervised fine-tuning on answers: the first step of InstructGPT's recipe (Ouyang et al. 2022).

The loss is on answer tokens only. `lora` trains an adapter and merges it at the end, `full` trains the language model; both
yield an ordinary checkpoint, so that in later stages "adapters off" is exactly this model. The vision tower and the projector
stay frozen. Left out: packing of several rows into one sequence.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf import losses
from mmrlhf.config import SFTConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import read_examples
from mmrlhf.loading import load
from mmrlhf.records import Example, InputError
from mmrlhf.rewards import pad_right
from mmrlhf.roles import Adapters, Role
from mmrlhf.rollout import Given, hidden_states
from mmrlhf.run import Run, load_optimizer, optimizer_tensors
from mmrlhf.training import apply, learning_rate_factor, rows_of_step, total_steps


def sft(config: SFTConfig, examples: Sequence[Example] | None = None) -> Path:
    """Train on `examples`, or on the configured data set; returns the checkpoint's directory (`output_dir/model`)."""
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process)
    target = run.path / "model"
    if run.finished:
        return target
    if examples is None:
        examples = read_examples(
            config.dataset_name,
            config.dataset_train_split,
            config.image_folder,
            read_facts(config.facts_file) if config.facts_file else None,
            need_answer=True,
        )

    # 1. Model, and what of it is trained
    if config.train == "full" and config.dtype != "float32":
        raise InputError("train full needs dtype float32: small steps vanish in bfloat16 weights; or use train lora")
    if config.dtype == "nf4":
        raise InputError(
            "sft writes a whole model, which 4 bits cannot hold exactly: use dtype bfloat16, and nf4 from the reward model on"
        )
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    if config.train == "lora":
        adapters = Adapters(vlm)
        adapters.add("sft", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
        role = Role(adapters, "sft")
    else:
        role = Role(Adapters(vlm), None)
        vlm.model.base_model.get_decoder().requires_grad_(True)
        vlm.model.get_output_embeddings().requires_grad_(True)
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    pad = int(vlm.tokenizer.pad_token_id)

    # 2. Where a killed run stood
    size = config.per_device_train_batch_size * accelerator.num_processes
    total, first = total_steps(config, len(examples), accelerator.num_processes), 0
    if found := run.resume():
        first, tensors, _ = found
        role.restore(tensors)
        load_optimizer(optimizer, tensors)

    # 3. Steps
    with run.progress(total, first, "sft") as steps:
        for step in range(first, total):
            rows = [examples[i] for i in rows_of_step(step, size, len(examples), config.seed)]
            mine = rows[accelerator.process_index :: accelerator.num_processes]
            answers = [vlm.answer_ids(e.prompt, e.answer or "", len(e.images), name=e.id) for e in mine]
            tokens = accelerator.reduce(torch.tensor(float(sum(map(len, answers))), device=accelerator.device), "sum")
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(config, step, total)
            room = [config.max_length - len(a) for a in answers]
            prompts = vlm.prompts([(e.prompt, e.images) for e in mine], room, [e.id for e in mine])
            given = Given(prompts, torch.arange(len(mine), device=vlm.device), *pad_right(answers, pad, vlm.device))

            def learn(given: Given = given, tokens: Tensor = tokens) -> float:
                """Gradients of this process's rows, a micro-batch at a time."""
                optimizer.zero_grad(set_to_none=True)
                total = 0.0
                for at, hidden in hidden_states(role, given):
                    ids, mask = (t[at, : hidden.shape[1]] for t in (given.ids_NT, given.mask_NT))
                    loss, _ = losses.sft(vlm.token_logps(hidden, ids, mask), mask)
                    loss = loss * mask.sum() / tokens
                    accelerator.backward(loss)
                    total += loss.item()
                return total

            loss = vlm.budget.within(learn)
            loss = float(accelerator.reduce(torch.tensor(loss, device=vlm.device), "sum"))
            norm = apply(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            steps.advance()
            metrics = {
                "loss": loss,
                "num_tokens": float(tokens),
                "grad_norm": norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            run.log(step + 1, metrics, show=(step + 1) % config.logging_steps == 0)
            if (step + 1) % config.save_steps == 0 and step + 1 < total:
                run.save(step + 1, {**role.tensors(), **optimizer_tensors(optimizer)}, {})

    # 4. A full checkpoint, whole or not at all
    if accelerator.is_main_process:
        model = adapters.peft.merge_and_unload() if config.train == "lora" else vlm.model  # type: ignore[union-attr]
        aside = run.path / ".model"
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(aside)
        vlm.processor.save_pretrained(aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        run.finish({"steps": total})
    accelerator.wait_for_everyone()
    return target
