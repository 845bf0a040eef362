"""Direct preference optimisation: train on preferences directly (Rafailov et al. 2023).

The policy is an adapter, and the reference is the base without it, or with the adapter from which
the policy starts. Policy and reference see the image and the prompt, never facts. A ranking of K
answers is one row, and each of its comparisons is weighted by one over their number, as in the
reward model; ties have no better answer and are left out. The answers of a row share one run of
their prompt. The reference's log-probs are computed once and kept in the run directory, or in every
step. For answers and their corrections, changed words may count more (Yu et al. 2024, RLHF-V's
DDPO). With image pairs, the same answer is also compared with itself about another picture, because
the other losses can be lowered without looking (Wang et al. 2024, mDPO). Not implemented: full
tuning of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmrlhf.config import DPOConfig
from mmrlhf.config.unread import POLICIES_SEE_NO_FACTS, refuse_unread
from mmrlhf.datasets import Records, read_preferences, subset
from mmrlhf.evaluation.policy_eval import EvalFunction, PolicyEvaluation
from mmrlhf.files.tables import split_of
from mmrlhf.files.writing import writes
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.export import save_policy
from mmrlhf.models.loading import load_base
from mmrlhf.models.policy import add_reference, add_trained_adapter, check_adapter_setting
from mmrlhf.models.processes import Accelerator, sum_over_processes
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import ImageSource, InputError, Preference
from mmrlhf.training.dpo import losses
from mmrlhf.training.dpo.batch import PreferenceBatch, answer_lengths, build_batch, untied_comparisons
from mmrlhf.training.dpo.held_out_pairs import CHOOSING_METRICS, HeldOutPairs
from mmrlhf.training.dpo.image_pairs import images_to_tensors, rejected_images
from mmrlhf.training.dpo.reference_logps import precompute, reference_logps
from mmrlhf.training.dpo.step import Counts, compute_gradients, count, mean_metrics
from mmrlhf.training.optim import check_loss, load_optimizer_state_dict, optimizer_state_dict, optimizer_step, set_learning_rate
from mmrlhf.training.row_checks import KeptChecks, Length, usable_indices
from mmrlhf.training.row_order import batch_indices, total_steps
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import open_rows
from mmrlhf.training.skipped_steps import SkippedSteps

MAX_FIRST_LOG_RATIO = {"float32": 1e-3, "bfloat16": 0.1, "nf4": 0.1}
"""Allowed difference of an answer's log-probs under the untrained policy and the reference, in nats
per token: they are the same model, in batches of other shapes."""


@writes("output_dir")
def dpo(
    config: DPOConfig,
    preferences: Sequence[Preference] | None = None,
    eval_function: EvalFunction | None = None,
    held_out: Sequence[Preference] | None = None,
) -> Path:
    """Train on `preferences`, or on the configured dataset; return the adapter folder.

    `held_out` (or eval_dataset_name) is measured, and `eval_function` called, at the steps of
    evaluations, in addition to `eval_benchmarks`. Raises InputError if settings or data cannot be
    used.
    """
    _check_config(config)
    if held_out is None and config.eval_dataset_name:
        held_out_split = split_of(config.eval_dataset_name, config.dataset_train_split)
        held_out = read_preferences(config.eval_dataset_name, held_out_split, config.image_folder, answer_images=True)
    pairs = HeldOutPairs(replace(config, image_pairs="none")) if held_out else None
    evaluation = _evaluation(config, pairs, eval_function)
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    adapter_dir = run.path / "policy"
    preferences, kept = open_rows(config, run, preferences, partial(read_preferences, answer_images=True))
    if held_out is not None:
        run.claim_rows(held_out, "eval")
    evaluation.claim(run, preferences)
    if run.is_finished:
        run.print_finished(adapter_dir)
        return adapter_dir

    # 1. Policy and reference, and the rows that have a better answer
    check_adapter_setting(config.adapter_path, "lora")
    vlm = load_base(config, accelerator)
    untied = _without_ties(config, preferences, run, config.dataset_name)
    rows = _usable_rows(config, vlm, untied, run, kept, config.dataset_name)
    adapters = Adapters(vlm)
    add_trained_adapter(adapters, "policy", config)
    policy, reference = Role(adapters, "policy"), add_reference(adapters, config)
    if pairs is not None and held_out:
        name = config.eval_dataset_name or "the held-out rows"
        untied_held_out = _without_ties(config, held_out, run, name)
        pairs.prepare(policy, reference, _usable_rows(pairs.config, vlm, untied_held_out, run, None, name))

    # 2. Train, and save
    num_steps = total_steps(config, len(rows), accelerator.num_processes)
    evaluation.plan(rows, num_steps)
    result = _train(config, accelerator, run, evaluation, policy, reference, rows, untied, num_steps)
    if accelerator.is_main_process:
        best = evaluation.finish(run, policy, adapter_dir)
        save_policy(adapters, "policy", adapter_dir)
        run.finish({"steps": evaluation.num_steps, **result, **best})
    accelerator.wait_for_everyone()
    return adapter_dir


def _train(
    config: DPOConfig,
    accelerator: Accelerator,
    run: Run,
    evaluation: PolicyEvaluation,
    policy: Role,
    reference: Role,
    rows: Sequence[Preference],
    untied: Sequence[Preference],
    num_steps: int,
) -> dict[str, Any]:
    """Take the remaining steps on `rows`; return their entries of finished.json.

    `untied` are all rows with a comparison, from which image pairs take other pictures.
    """
    vlm, start_step, metrics = policy.vlm, 0, dict[str, float]()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    skipped_steps = SkippedSteps(run, "dpo", config, accelerator, [policy], num_steps)

    def other_images(local_rows: Sequence[Preference]) -> list[tuple[ImageSource, ...] | None]:
        return [rejected_images(config, untied, row) for row in local_rows]

    def build(local_rows: Sequence[Preference]) -> PreferenceBatch:
        return build_batch(config, vlm, local_rows, other_images(local_rows))

    # Resume; the reference's log-probs of the rows that the steps will take
    if resumed := run.resume(num_steps):
        start_step, tensors, state = resumed
        policy.load_state_dict(tensors)
        load_optimizer_state_dict(optimizer, tensors)
        skipped_steps.load_state_dict(state.get("skipped_steps", {}))
        metrics = {name: value for name, value in state.get("last", {}).items() if value is not None}
        evaluation.restore(tensors, state, start_step)
    elif measured := evaluation.evaluate(run, accelerator, policy, 0):
        run.log(0, measured)
    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    kept_logps: dict[int, list[float]] = {}
    if config.precompute_ref_log_probs:
        needed = sorted({i for step in range(num_steps) for i in batch_indices(step, batch_size, len(rows), config.seed)})
        kept_logps = precompute(run, accelerator, config, reference, rows, needed, build)

    # Steps
    with run.progress(num_steps, start_step, "dpo") as progress_bar:
        for step in range(start_step, evaluation.num_steps):
            indices = batch_indices(step, batch_size, len(rows), config.seed)
            local_indices = indices[accelerator.process_index :: accelerator.num_processes]
            local_rows = [rows[i] for i in local_indices]
            learning_rate = set_learning_rate(optimizer, config, step, num_steps)
            with skipped_steps.attempt(step + 1, local_rows) as attempt:
                images = other_images(local_rows)
                batch = build_batch(config, vlm, local_rows, images)
                if config.precompute_ref_log_probs:
                    ref_logps_N = reference_logps([kept_logps[i] for i in local_indices], batch.token_weights_NT)
                else:
                    ref_logps_N = batch.weighted_logps(reference)
                counts = count(accelerator, batch)
                attempt.batch = {"ref_logps_N": ref_logps_N, **images_to_tensors(images)}
                attempt.numbers = asdict(counts)
                sums = vlm.budget.retry_on_oom(compute_gradients, config, accelerator, policy, batch, ref_logps_N, counts)
                attempt.numbers = {"loss": sums["loss"], **asdict(counts)}
                means = mean_metrics(sum_over_processes(sums), counts)
                check_loss(means["loss"])
                if step == 0:
                    _check_policy_is_reference(config, means, counts)
                grad_norm = optimizer_step(accelerator, optimizer, policy.parameters(), config.max_grad_norm)
            metrics = skipped_steps.metrics()
            if not attempt.is_skipped:
                metrics = means | metrics
                metrics |= {"num_tokens": counts.tokens, "grad_norm": grad_norm, "learning_rate": learning_rate}
            progress_bar.advance()
            measured = evaluation.evaluate(run, accelerator, policy, step + 1)
            is_logging_step = step + 1 == num_steps or (step + 1) % config.logging_steps == 0
            run.log(step + 1, metrics | measured, show=is_logging_step)
            stop = evaluation.after_step(run, accelerator, step + 1, metrics, is_logging_step)
            is_last = step + 1 == evaluation.num_steps
            is_save_due = run.end_step(step + 1, is_last=is_last)
            if is_save_due or stop or skipped_steps.may_stop:
                evaluation.save_best(run, policy)
                best_tensors, state = evaluation.checkpoint()
                state |= {"skipped_steps": skipped_steps.state_dict(), "last": _last_metrics(metrics)}
                run.save_checkpoint(step + 1, {**policy.state_dict(), **optimizer_state_dict(optimizer), **best_tensors}, state)
                if stop:
                    raise InputError(stop)
            if is_last:
                break
    return {**_last_metrics(metrics), **skipped_steps.metrics()}


def _last_metrics(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return the metrics of the last step that finished.json has."""
    return {name: metrics.get(name) for name in ("loss", "rewards/accuracies", "rewards/margins")}


def _check_config(config: DPOConfig) -> None:
    """Raise InputError for settings that contradict each other."""
    weights = losses.loss_weights(config)
    if config.label_smoothing and not set(weights) & set(losses.SMOOTHED_LOSS_TYPES):
        raise InputError(
            f"label_smoothing is for {', '.join(losses.SMOOTHED_LOSS_TYPES)}, and loss_type is {config.loss_type}: "
            "leave one of them out"
        )
    if config.image_pairs == "none":
        refuse_unread(config, ("image_pair_coefficient",), "is for image_pairs, which is none")
    refuse_unread(config, ("facts_file",), POLICIES_SEE_NO_FACTS)
    if set(weights) == {"sft"} and not config.anchor_coefficient and config.image_pairs == "none":
        raise InputError("loss_type sft alone compares nothing: use `mmrlhf sft`, or add another loss, such as sigmoid,sft")


def check_recipe(config: DPOConfig, eval_function: EvalFunction | None = None) -> None:
    """Raise InputError, before anything is loaded, for settings that `dpo` refuses."""
    _check_config(config)
    _evaluation(config, HeldOutPairs(config) if config.eval_dataset_name else None, eval_function)


def _evaluation(config: DPOConfig, pairs: HeldOutPairs | None, eval_function: EvalFunction | None) -> PolicyEvaluation:
    """Return the evaluation during training, which also measures held-out pairs if given."""
    if pairs is None:
        return PolicyEvaluation(config, eval_function)
    function = pairs if eval_function is None else lambda vlm: {**pairs(vlm), **eval_function(vlm)}
    return PolicyEvaluation(config, function, held_out_metrics=CHOOSING_METRICS, watch=pairs.watch)


def _without_ties(config: DPOConfig, preferences: Sequence[Preference], run: Run, dataset: str) -> Sequence[Preference]:
    """Return the rows in which some answer is better than another; print how many are left out.

    Raises InputError if there is none, and for rankings if settings need pairs.
    """
    indices = []
    for index, row in enumerate(preferences):
        if untied_comparisons(row):
            indices.append(index)
        if config.changed_token_weight != 1 and len(row.answers) > 2:
            name = preferences.name_row(index) if isinstance(preferences, Records) else f"row {row.id}"
            raise InputError(
                f"{dataset}, {name}: changed_token_weight compares an answer with its correction, and the row has "
                f"{len(row.answers)} answers: leave the setting or the rankings out"
            )
    if not indices:
        raise InputError(f"{dataset} has ties only, and a tie has no better answer to learn: give other rows")
    if len(indices) == len(preferences):
        return preferences
    run.print(f"note: {dataset}: {len(preferences) - len(indices)} of {len(preferences)} rows are ties and are left out")
    return subset(preferences, indices)


def _usable_rows(
    config: DPOConfig, vlm: VLM, rows: Sequence[Preference], run: Run, kept: KeptChecks | None, dataset: str
) -> Sequence[Preference]:
    """Return the rows that the model can read. Raises InputError as `usable_indices` does."""
    lengths = PromptLengths(vlm, config.max_pixels)
    if config.image_pairs != "none" and not any(row.images for row in rows):
        raise InputError(f"{dataset} has no row with an image, and image_pairs compares images: leave it out")

    def lengths_of(row: Preference) -> list[Length]:
        measured = answer_lengths(config, vlm, lengths, row, row.images, range(len(row.answers)))
        if config.image_pairs == "other" and (images := rejected_images(config, rows, row)):
            measured += answer_lengths(config, vlm, lengths, row, images, [0])
        return [Length(num_tokens, lengths.limit(config.max_length)) for num_tokens in measured]

    return subset(rows, usable_indices(rows, config, dataset, lengths_of, lengths, run.console, kept))


def _check_policy_is_reference(config: DPOConfig, metrics: dict[str, float], counts: Counts) -> None:
    """Raise RuntimeError if a policy that has not been trained yet differs from the reference."""
    distance = max(abs(metrics[f"rewards/{side}"]) for side in ("chosen", "rejected")) / config.beta
    tokens_per_row = counts.tokens * max(1.0, config.changed_token_weight) / counts.rows
    if not distance <= MAX_FIRST_LOG_RATIO[config.dtype] * tokens_per_row:  # `not <=` also catches NaN
        raise RuntimeError(
            f"before the first step policy and reference differ by {distance:.2g} nats: the base is not the reference"
        )
