"""Supervised fine-tuning on answers: the first step of InstructGPT's recipe (Ouyang et al. 2022).

The loss is on the tokens of assistant turns only. `lora` trains an adapter and merges it at the
end; `full` trains the language model. Both write an ordinary checkpoint, so in later stages
"adapters off" is exactly this model. The vision tower and the projector stay frozen, unless
`lora_target_modules` names them. Not implemented: packing several rows into one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmrlhf.config import SFTConfig
from mmrlhf.config.unread import POLICIES_SEE_NO_FACTS, refuse_unread
from mmrlhf.datasets import read_examples, subset
from mmrlhf.evaluation.policy_eval import EvalFunction, PolicyEvaluation
from mmrlhf.files.writing import writes
from mmrlhf.models import sharding
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.export import merge, save_model, save_policy
from mmrlhf.models.loading import load, load_base
from mmrlhf.models.policy import add_trained_adapter, check_adapter_setting, check_tuning
from mmrlhf.models.processes import Accelerator
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, InputError
from mmrlhf.training.optim import check_loss, load_optimizer_state_dict, optimizer_state_dict, optimizer_step, set_learning_rate
from mmrlhf.training.row_checks import KeptChecks, Length, usable_indices
from mmrlhf.training.row_order import batch_indices, total_steps
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import open_rows
from mmrlhf.training.sft_batch import SFTBatch, accumulate_sft_gradients, build_sft_batch, example_lengths
from mmrlhf.training.skipped_steps import SkippedSteps


@writes("output_dir")
def sft(config: SFTConfig, examples: Sequence[Example] | None = None, eval_function: EvalFunction | None = None) -> Path:
    """Train on `examples`, or on the configured dataset; return the checkpoint, `output_dir/model`.

    `eval_function` is called at the steps of evaluations, beside `eval_benchmarks`. Raises
    InputError if settings or data cannot be used.
    """
    check_recipe(config)
    evaluation = PolicyEvaluation(config, eval_function)
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    model_dir = run.path / "model"
    examples, kept = open_rows(config, run, examples, partial(read_examples, require_answer=True))
    evaluation.claim(run, examples)
    if run.is_finished:
        run.print_finished(model_dir)
        return model_dir

    # 1. Model and trained parameters
    check_adapter_setting(config.adapter_path, config.tuning)
    vlm = load_base(config, accelerator)
    examples = _usable_examples(config, vlm, examples, run, kept)
    role = add_sft_role(config, vlm)
    optimizer = torch.optim.AdamW(role.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)

    # 2. Resume
    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    num_steps, start_step = total_steps(config, len(examples), accelerator.num_processes), 0
    skipped_steps = SkippedSteps(run, "sft", config, accelerator, [role], num_steps)
    evaluation.plan(examples, num_steps)
    if resumed := run.resume(num_steps):
        start_step, tensors, state = resumed
        role.load_state_dict(tensors)
        load_optimizer_state_dict(optimizer, tensors)
        skipped_steps.load_state_dict(state.get("skipped_steps", {}))
        evaluation.restore(tensors, state, start_step)
    elif measured := evaluation.evaluate(run, accelerator, role, 0):
        run.log(0, measured)

    # 3. Steps
    with run.progress(num_steps, start_step, "sft") as progress_bar:
        for step in range(start_step, evaluation.num_steps):
            rows = [examples[i] for i in batch_indices(step, batch_size, len(examples), config.seed)]
            local_rows = rows[accelerator.process_index :: accelerator.num_processes]
            learning_rate = set_learning_rate(optimizer, config, step, num_steps)
            with skipped_steps.attempt(step + 1, local_rows) as attempt:
                batch = build_sft_batch(vlm, local_rows, config.max_length, config.train_on)
                num_tokens = accelerator.reduce(batch.is_learnt_NT.sum().float(), "sum")
                local_loss = vlm.budget.retry_on_oom(compute_gradients, accelerator, role, batch, num_tokens)
                attempt.numbers = {"loss": local_loss, "num_tokens": float(num_tokens)}
                loss = float(accelerator.reduce(torch.tensor(local_loss, device=vlm.device), "sum"))
                check_loss(loss)
                grad_norm = optimizer_step(accelerator, optimizer, role.parameters(), config.max_grad_norm)
            metrics = skipped_steps.metrics()
            if not attempt.is_skipped:
                metrics |= {"loss": loss, "num_tokens": float(num_tokens)}
                metrics |= {"grad_norm": grad_norm, "learning_rate": learning_rate}
            progress_bar.advance()
            metrics |= evaluation.evaluate(run, accelerator, role, step + 1)
            is_logging_step = step + 1 == num_steps or (step + 1) % config.logging_steps == 0
            run.log(step + 1, metrics, show=is_logging_step)
            stop = evaluation.after_step(run, accelerator, step + 1, metrics, is_logging_step)
            is_last = step + 1 == evaluation.num_steps
            is_save_due = run.end_step(step + 1, is_last=is_last)
            if is_save_due or stop or skipped_steps.may_stop:
                evaluation.save_best(run, role)
                best_tensors, state = evaluation.checkpoint()
                tensors = {**role.state_dict(), **optimizer_state_dict(optimizer), **best_tensors}
                run.save_checkpoint(step + 1, tensors, {"skipped_steps": skipped_steps.state_dict()} | state)
                if stop:
                    raise InputError(stop)
            if is_last:
                break

    # 4. Checkpoint of the complete model, written under a temporary name and renamed
    if accelerator.is_main_process:
        adapters, best = role.adapters, evaluation.finish(run, role, model_dir)
        if config.tuning == "lora":
            if config.dtype == "nf4" or sharding.is_sharded(vlm.model):
                adapters = _on_whole_base(adapters, run.path / "adapter", config)
            merge(adapters, "sft")
        save_model(adapters.vlm, model_dir)
        run.finish({"steps": evaluation.num_steps, **skipped_steps.metrics(), **best})
    accelerator.wait_for_everyone()
    return model_dir


def add_sft_role(config: SFTConfig, vlm: VLM) -> Role:
    """Make an adapter, or the language model itself, trainable.

    Raises InputError for an adapter_path that is damaged or belongs to another base.
    """
    adapters = Adapters(vlm)
    if config.tuning == "lora":
        add_trained_adapter(adapters, "sft", config)
        return Role(adapters, "sft")
    vlm.model.base_model.get_decoder().requires_grad_(True)
    vlm.model.get_output_embeddings().requires_grad_(True)
    return Role(adapters, None)


def check_recipe(config: SFTConfig) -> None:
    """Raise InputError, before anything is loaded, for settings that contradict each other."""
    check_tuning(config.tuning, config.dtype)
    refuse_unread(config, ("facts_file",), POLICIES_SEE_NO_FACTS)
    if config.tuning == "full" and config.metric_for_best_model and not config.load_best_model_at_end:
        raise InputError(
            "metric_for_best_model keeps the best adapter beside the last one, and tuning full has none: add "
            "load_best_model_at_end true"
        )


def _on_whole_base(adapters: Adapters, adapter_dir: Path, config: SFTConfig) -> Adapters:
    """Save the adapter of a base that is in 4 bits or sharded, and load it on the whole base.

    The 4-bit weights cannot be written exactly, but those of the checkpoint can, in bfloat16.
    """
    save_policy(adapters, "sft", adapter_dir)
    dtype = "bfloat16" if adapters.vlm.dtype == "nf4" else adapters.vlm.dtype
    base = Adapters(load(adapters.vlm.name, dtype, "cpu", config, config))
    base.load("sft", adapter_dir, trainable=False)
    return base


def _usable_examples(
    config: SFTConfig, vlm: VLM, examples: Sequence[Example], run: Run, kept: KeptChecks | None
) -> Sequence[Example]:
    """Return the examples that are usable for training. Raises InputError like `usable_indices`."""
    lengths = PromptLengths(vlm, config.max_pixels)

    def lengths_of(example: Example) -> list[Length]:
        return example_lengths(vlm, lengths, example, config.max_length, config.train_on)

    return subset(examples, usable_indices(examples, config, config.dataset_name, lengths_of, lengths, run.console, kept))


def compute_gradients(accelerator: Accelerator, role: Role, batch: SFTBatch, num_tokens: Tensor) -> float:
    """Compute the gradients of this process's rows; return the loss.

    `num_tokens` is the step's count of learnt tokens over all processes. Safe to rerun when out of
    memory: it starts by clearing the gradients.
    """
    role.clear_gradients()
    return accumulate_sft_gradients(accelerator, role, batch, num_tokens)
