"""Supervised fine-tuning on answers: the first step of InstructGPT's recipe (Ouyang et al. 2022).

The loss is on the tokens of assistant turns only. `lora` trains an adapter and merges it at the
end; `full` trains the language model. Both write an ordinary checkpoint, so in later stages
"adapters off" is exactly this model. The vision tower and the projector stay frozen. Not
implemented: packing several rows into one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf.config import SFTConfig
from mmrlhf.datasets import read_examples
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.scoring import hidden_states
from mmrlhf.facts import read_facts
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.chat_text import Continuation
from mmrlhf.models.export import merge, save_model, save_policy
from mmrlhf.models.loading import load
from mmrlhf.models.policy import add_trained_adapter, check_adapter_setting
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM, Conversation
from mmrlhf.records import Example, InputError, Message
from mmrlhf.training import losses
from mmrlhf.training.optim import batch_indices, load_optimizer, lr_multiplier, optimizer_step, optimizer_tensors, total_steps
from mmrlhf.training.row_checks import KeptChecks, Length, usable_rows
from mmrlhf.training.run import Run


def sft(config: SFTConfig, examples: Sequence[Example] | None = None) -> Path:
    """Train on `examples`, or on the configured dataset; return the checkpoint, `output_dir/model`.

    Raises InputError if settings or data cannot be used.
    """
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    model_dir = run.path / "model"
    kept = None
    if examples is None:
        kept = KeptChecks(run.path / "rows.json", run.add_file)
        examples = read_examples(
            config.dataset_name,
            config.dataset_train_split,
            config.image_folder,
            read_facts(config.facts_file) if config.facts_file else None,
            require_answer=True,
        )
    run.claim_rows(examples)
    if run.is_finished:
        run.print_finished(model_dir)
        return model_dir

    # 1. Model and trained parameters
    if config.tuning == "full" and config.dtype != "float32":
        raise InputError("tuning full needs dtype float32: small steps vanish in bfloat16 weights; or use tuning lora")
    check_adapter_setting(config.adapter_path, config.tuning)
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    examples = _usable_examples(config, vlm, examples, run, kept)
    adapters = Adapters(vlm)
    if config.tuning == "lora":
        add_trained_adapter(adapters, "sft", config)
        role = Role(adapters, "sft")
    else:
        role = Role(adapters, None)
        vlm.model.base_model.get_decoder().requires_grad_(True)
        vlm.model.get_output_embeddings().requires_grad_(True)
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    # 2. Resume
    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    num_steps, start_step = total_steps(config, len(examples), accelerator.num_processes), 0
    if resumed := run.resume():
        start_step, tensors, _ = resumed
        role.load_state_dict(tensors)
        load_optimizer(optimizer, tensors)

    # 3. Steps
    with run.progress(num_steps, start_step, "sft") as progress_bar:
        for step in range(start_step, num_steps):
            rows = [examples[i] for i in batch_indices(step, batch_size, len(examples), config.seed)]
            local_rows = rows[accelerator.process_index :: accelerator.num_processes]
            batch = _build_batch(config, vlm, local_rows)
            num_tokens = accelerator.reduce(batch.is_learnt_NT.sum().float(), "sum")
            for param_group in optimizer.param_groups:
                param_group["lr"] = config.learning_rate * lr_multiplier(config, step, num_steps)

            local_loss = vlm.budget.retry_on_oom(_accumulate_gradients, accelerator, optimizer, role, batch, num_tokens)
            loss = float(accelerator.reduce(torch.tensor(local_loss, device=vlm.device), "sum"))
            grad_norm = optimizer_step(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            progress_bar.advance()
            metrics = {
                "loss": loss,
                "num_tokens": float(num_tokens),
                "grad_norm": grad_norm,
                "learning_rate": optimizer.param_groups[0]["lr"],
            }
            run.log(step + 1, metrics, show=(step + 1) % config.logging_steps == 0)
            if (step + 1) % config.save_steps == 0 and step + 1 < num_steps:
                run.save_checkpoint(step + 1, {**role.state_dict(), **optimizer_tensors(optimizer)}, {})

    # 4. Checkpoint of the complete model, written under a temporary name and renamed
    if accelerator.is_main_process:
        if config.tuning == "lora":
            adapters = _without_quantisation(adapters, run.path / "adapter") if config.dtype == "nf4" else adapters
            merge(adapters, "sft")
        save_model(adapters.vlm, model_dir)
        run.finish({"steps": num_steps})
    accelerator.wait_for_everyone()
    return model_dir


def _without_quantisation(adapters: Adapters, adapter_dir: Path) -> Adapters:
    """Save the adapter of a 4-bit base, and load it on the base in bfloat16.

    The 4-bit weights cannot be written exactly; those of the checkpoint can.
    """
    save_policy(adapters, "sft", adapter_dir)
    base = Adapters(load(adapters.vlm.name, "bfloat16", "cpu"))
    base.load("sft", adapter_dir, trainable=False)
    return base


def _learnt(config: SFTConfig, vlm: VLM, example: Example) -> list[tuple[Conversation, Continuation]]:
    """Return the prompts of an example, each with its continuation. Raises InputError."""
    messages = (*example.prompt, Message("assistant", example.answer or ""))
    continuations = vlm.chat.learnt_continuations(messages, len(example.images), train_on=config.train_on, row_id=example.id)
    return [((messages[: c.num_messages], example.images[: c.num_images]), c) for c in continuations]


def _usable_examples(
    config: SFTConfig, vlm: VLM, examples: Sequence[Example], run: Run, kept: KeptChecks | None
) -> Sequence[Example]:
    """Return the examples that the model can learn. Raises InputError as `usable_rows` does."""
    lengths = PromptLengths(vlm, config.max_pixels)

    def lengths_of(example: Example) -> list[Length]:
        return [
            Length(lengths.count(*prompt) + len(continuation.token_ids), lengths.limit(config.max_length))
            for prompt, continuation in _learnt(config, vlm, example)
        ]

    return usable_rows(examples, config, config.dataset_name, lengths_of, lengths, run.console, kept)


@dataclass(frozen=True)
class _Batch:
    """A step's rows: prompts with their continuations, padded to T tokens."""

    completions: Completions
    targets_NT: Tensor
    """The tokens to predict."""
    is_learnt_NT: Tensor
    """The loss mask: 1 on the tokens to learn."""


def _build_batch(config: SFTConfig, vlm: VLM, rows: Sequence[Example]) -> _Batch:
    """Build the prompts and continuations of some rows. Raises InputError that names the row."""
    learnt = [(row.id, *pair) for row in rows for pair in _learnt(config, vlm, row)]
    continuations = [continuation for _, _, continuation in learnt]
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    token_ids_NT, mask_NT = pad_right([c.token_ids for c in continuations], pad_token_id, vlm.device)
    targets_NT, _ = pad_right([c.targets for c in continuations], pad_token_id, vlm.device)
    is_learnt_NT, _ = pad_right([c.is_learnt for c in continuations], 0, vlm.device)
    max_prompt_lengths = [config.max_length - len(c.token_ids) for c in continuations]
    prompts = vlm.build_prompts([prompt for _, prompt, _ in learnt], max_prompt_lengths, [row_id for row_id, _, _ in learnt])
    completions = Completions(prompts, torch.arange(len(prompts), device=vlm.device), token_ids_NT, mask_NT)
    return _Batch(completions, targets_NT, is_learnt_NT)


def _accumulate_gradients(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    role: Role,
    batch: _Batch,
    num_tokens: Tensor,
) -> float:
    """Accumulate the gradients of this process's rows, a micro-batch at a time; return the loss.

    `num_tokens` is the step's count of learnt tokens over all processes. Safe to rerun when out of
    memory: it starts by clearing the gradients.
    """
    optimizer.zero_grad(set_to_none=True)
    total_loss = 0.0
    for indices, hidden_NTD in hidden_states(role, batch.completions):
        width = hidden_NTD.shape[1]
        targets_NT, is_learnt_NT = batch.targets_NT[indices, :width], batch.is_learnt_NT[indices, :width]
        loss, _ = losses.sft(role.vlm.token_logps(hidden_NTD, targets_NT, is_learnt_NT), is_learnt_NT)
        loss = loss * is_learnt_NT.sum() / num_tokens
        accelerator.backward(loss)
        total_loss += loss.item()
    return total_loss
