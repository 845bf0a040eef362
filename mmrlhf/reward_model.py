"""The factually augmented reward model, trained on preferences with facts about the image.

Facts are typed evidence before the question, or in the review turn after the answer (Sun et al.
2023, LLaVA-RLHF), with the same text and order for all answers to a prompt. `facts: none` is the
ablation. In training, some rows' facts are dropped or replaced, so that the model works with few
facts and does not trust all of them. A ranking of K answers is one row, and each of its comparisons
is weighted by one over their number (Ouyang et al. 2022, section 3.5). The reward is a scalar head
on the last token of the review turn; it starts from the model's own preference for "Yes" over "No":
the untrained review. Few noisy pairs can make the model forget how to check, so J
(`metrics.youden`) is measured before and after training, and several settings keep it close to the
untrained review: `untrained_prior`, `untrained_score_coefficient`, `tuning: head`,
`load_best_model_at_end`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mmrlhf.config import RewardConfig
from mmrlhf.config.unread import refuse_unread
from mmrlhf.datasets import read_preferences, subset
from mmrlhf.datasets.balance import balance_lengths
from mmrlhf.facts import load_facts_template, read_facts
from mmrlhf.files.tables import split_of
from mmrlhf.files.writing import writes
from mmrlhf.metrics.youden import ALL_KINDS, Outcomes, youden_j
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.heads import random_head, scalar_head, yes_no_head
from mmrlhf.models.loading import load_base
from mmrlhf.models.policy import add_trained_adapter, check_adapter_setting, check_tuning
from mmrlhf.models.processes import Accelerator, sum_over_processes
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError, Preference
from mmrlhf.rewards import checkpoint
from mmrlhf.rewards.checkpoint import check_continues, load_to_continue
from mmrlhf.rewards.probes import NOTHING_TO_INJECT
from mmrlhf.rewards.reward_model import RewardModel, untrained_role
from mmrlhf.training.best_model import BestModel
from mmrlhf.training.monitor import UNDEFINED
from mmrlhf.training.optim import check_loss, load_optimizer_state_dict, optimizer_state_dict, optimizer_step, set_learning_rate
from mmrlhf.training.reward_model.measured_rows import MeasuredRows, j_sentence, rows_to_measure, to_answer_group
from mmrlhf.training.reward_model.rows import training_rows
from mmrlhf.training.reward_model.step import check_margins, compute_gradients, preference_loss
from mmrlhf.training.reward_model.watch import reward_monitor, watch
from mmrlhf.training.row_checks import KeptChecks, Length, group_length, usable_indices
from mmrlhf.training.row_order import batch_indices, total_steps
from mmrlhf.training.run import Run
from mmrlhf.training.skipped_steps import SkippedSteps

NUM_NOISE_ROWS = 512
"""Number of rows that supply facts about other images as noise."""


@writes("output_dir")
def train_reward_model(
    config: RewardConfig, preferences: Sequence[Preference] | None = None, held_out: Sequence[Preference] | None = None
) -> Path:
    """Train on `preferences`, or on the configured dataset; return the reward model's directory.

    Accuracy is reported on `held_out` (or eval_dataset_name); only load_best_model_at_end selects
    on it. Raises InputError if settings or data cannot be used.
    """
    check_config(config, has_held_out=held_out is not None)
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    kept, kept_held_out = None, None
    facts = read_facts(config.facts_file) if config.facts_file else None
    split, source = config.dataset_train_split, (config.image_folder, facts, True)
    if preferences is None:
        kept = KeptChecks(run.path / "rows.json", run.add_file)
        preferences = read_preferences(config.dataset_name, split, *source)
    if held_out is None and config.eval_dataset_name:
        kept_held_out = KeptChecks(run.path / "eval_rows.json", run.add_file)
        held_out = read_preferences(config.eval_dataset_name, split_of(config.eval_dataset_name, split), *source)
    run.claim_rows(preferences)
    if held_out is not None:
        run.claim_rows(held_out, "eval")
    if run.is_finished:
        run.print_finished(run.path)
        return run.path
    preferences = _select_preferences(config, preferences)
    for rows in (preferences, held_out if held_out and config.eval_steps else ()):
        check_margins(config, rows)
    rows_to_measure(config, preferences, held_out).check(config)

    # 1. The role: an adapter, or the full language model, with a scalar head
    vlm = load_base(config, accelerator)
    model, untrained = build_models(config, vlm)
    lengths = PromptLengths(vlm, config.max_pixels)

    def usable_rows(rows: Sequence[Preference], name: str, kept: KeptChecks | None) -> Sequence[Preference]:
        def lengths_of(row: Preference) -> list[Length]:
            return [group_length(model, lengths, to_answer_group(row))]

        return subset(rows, usable_indices(rows, config, name, lengths_of, lengths, run.console, kept))

    preferences = usable_rows(preferences, config.dataset_name, kept)
    if held_out:
        held_out = usable_rows(held_out, config.eval_dataset_name or "the held-out rows", kept_held_out)
    measured_rows = rows_to_measure(config, preferences, held_out)

    # 2. Train
    num_steps = total_steps(config, len(preferences), accelerator.num_processes)
    skipped_steps = SkippedSteps(run, "reward", config, accelerator, [model.role], num_steps)
    last_step, best, outcomes_before = _train(
        config, accelerator, run, model, untrained, lengths, preferences, measured_rows, skipped_steps, num_steps
    )

    # 3. Normalise, calibrate and probe, then save
    if config.load_best_model_at_end and best.step is None:
        run.print(f"note: {best.metric} was never a number, so the last weights are kept")
    elif config.load_best_model_at_end:
        model.role.load_state_dict(best.tensors)
        run.print(f"kept the weights of step {best.step}, the best measured: {best.metric} {best.value:.3f}")
    if accelerator.is_main_process:
        _calibrate_and_save(model, run, measured_rows, outcomes_before, last_step, config, skipped_steps)
    accelerator.wait_for_everyone()
    return run.path


def _train(
    config: RewardConfig,
    accelerator: Accelerator,
    run: Run,
    model: RewardModel,
    untrained: RewardModel | None,
    lengths: PromptLengths,
    preferences: Sequence[Preference],
    measured_rows: MeasuredRows,
    skipped_steps: SkippedSteps,
    num_steps: int,
) -> tuple[int, BestModel, Outcomes]:
    """Take the remaining of `num_steps` steps.

    Return the last one taken, the best weights, and the outcomes before training.
    """
    role, vlm, start_step = model.role, model.role.vlm, 0
    trained_parameters = [p for p in role.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained_parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    other_facts = [fact for i in range(min(len(preferences), NUM_NOISE_ROWS)) for fact in preferences[i].facts]
    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    best, num_not_better = BestModel(config.metric_for_best_model, config.metric_for_best_model != "loss"), 0
    monitor = reward_monitor(config)

    # Resume, or measure the model before training
    outcomes_before: Outcomes
    if resumed := run.resume(num_steps):
        start_step, tensors, state = resumed
        role.load_state_dict(tensors)
        load_optimizer_state_dict(optimizer, tensors)
        best.restore(tensors, state)
        monitor.load_state_dict(state.get("monitor", {}))
        num_not_better = state["num_not_better"] if best.step is not None else 0
        skipped_steps.load_state_dict(state.get("skipped_steps", {}))
        outcomes_before = {kind: (np.array(false), np.array(true)) for kind, (false, true) in state["outcomes_before"].items()}
    else:
        outcomes_before = measured_rows.outcomes(untrained or model)
        if config.eval_steps:
            measured, _ = _measure(config, accelerator, model, measured_rows, best, 0)
            watch(run, monitor, model, measured_rows, 0, measured)

    # Steps
    description = f"reward ({'with' if config.facts == 'given' else 'without'} facts)"
    step, patience = start_step, config.early_stopping_patience or num_steps + 1
    with run.progress(num_steps, start_step, description) as progress_bar:
        while step < num_steps and num_not_better < patience and not monitor.ended:
            rows = [preferences[i] for i in batch_indices(step, batch_size, len(preferences), config.seed)]
            local_rows = rows[accelerator.process_index :: accelerator.num_processes]
            local_rows = training_rows(config, model, lengths, local_rows, other_facts, step)
            learning_rate = set_learning_rate(optimizer, config, step, num_steps)
            with skipped_steps.attempt(step + 1, local_rows) as attempt:
                sums = vlm.budget.retry_on_oom(compute_gradients, config, accelerator, model, untrained, local_rows, batch_size)
                attempt.numbers = {"loss": sums["loss"], "batch_size": batch_size}
                metrics = sum_over_processes(sums)
                check_loss(metrics["loss"])
                grad_norm = optimizer_step(accelerator, optimizer, trained_parameters, config.max_grad_norm)
            if attempt.is_skipped:
                metrics = {}
            else:
                untied_weight = metrics.pop("ranked") or float("nan")  # ties alone say nothing about accuracy
                metrics |= {k: metrics[k] / untied_weight for k in ("accuracy", "margin", "mean_reward")}
                metrics["grad_norm"] = grad_norm
            metrics |= skipped_steps.metrics() | {"learning_rate": learning_rate}
            progress_bar.advance()
            step += 1
            is_measured = config.eval_steps is not None and (step % config.eval_steps == 0 or step == num_steps)
            if is_measured:
                is_best = False
                try:
                    measured, is_best = _measure(config, accelerator, model, measured_rows, best, step)
                    watch(run, monitor, model, measured_rows, step, measured)
                    metrics = measured | metrics
                except NotFiniteError as error:  # on all processes, which score the same rows
                    run.warn(step, UNDEFINED, f"this evaluation is left out, and the run goes on: {error}")
                num_not_better = 0 if is_best else num_not_better + 1
            is_last = step == num_steps or num_not_better >= patience
            is_logging_step = is_last or step % config.logging_steps == 0
            run.log(step, metrics, show=is_measured or is_logging_step)
            stop = monitor.after_step(run, accelerator, step, metrics, is_logging_step, is_last=is_last)
            is_last = is_last or bool(monitor.ended)
            is_save_due = run.end_step(step, is_last=is_last)
            if is_save_due or stop or skipped_steps.may_stop:
                lists = {kind: [false.tolist(), true.tolist()] for kind, (false, true) in outcomes_before.items()}
                best_tensors, state = best.checkpoint()
                state |= {"num_not_better": num_not_better, "outcomes_before": lists, "monitor": monitor.state_dict()}
                state |= {"skipped_steps": skipped_steps.state_dict()}
                run.save_checkpoint(step, {**role.state_dict(), **optimizer_state_dict(optimizer), **best_tensors}, state)
                if stop:
                    raise InputError(stop)
    return step, best, outcomes_before


def check_config(config: RewardConfig, has_held_out: bool = False) -> None:
    """Raise InputError for settings that contradict each other.

    `has_held_out`: whether rows for evaluation are given otherwise than by eval_dataset_name.
    """
    check_tuning(config.tuning, config.dtype)
    if not check_continues(config):
        check_adapter_setting(config.adapter_path, config.tuning)
    for name in ("untrained_prior", "untrained_score_coefficient"):
        if getattr(config, name) and config.tuning == "full":
            raise InputError(
                f"{name} needs the untrained base beside the trained one, and tuning full changes it: use tuning lora"
            )
        if getattr(config, name) and config.head_init == "random":
            raise InputError(f"{name} is about the base's own Yes and No, and head_init random starts elsewhere: leave one out")
    if config.loss_type == "bt_margin" and config.injected_claim_rate:
        raise InputError("loss_type bt_margin needs margins, and injected claims have none: set injected_claim_rate 0")
    if config.loss_type != "bt_label_smoothing":
        refuse_unread(config, ("label_smoothing",), f"is for loss_type bt_label_smoothing, and this is {config.loss_type}")
    if config.loss_type != "rao_kupper":
        refuse_unread(config, ("tie_threshold",), f"is for loss_type rao_kupper, and this is {config.loss_type}")
    if config.eval_steps and not (has_held_out or config.eval_dataset_name):
        raise InputError("eval_steps measures on rows that are not trained on: give --eval_dataset_name")
    if config.load_best_model_at_end and not config.eval_steps:
        raise InputError("load_best_model_at_end chooses among the measurements along the way: give --eval_steps")
    if config.early_stopping_patience and not config.load_best_model_at_end:
        raise InputError("early_stopping_patience waits for a new best: give --load_best_model_at_end true")
    reward_monitor(config)


def _select_preferences(config: RewardConfig, preferences: Sequence[Preference]) -> Sequence[Preference]:
    """Balance lengths if configured. Raises InputError if settings and data do not fit together."""
    if config.balance_lengths:
        kept_indices = balance_lengths(preferences, config.seed)
        if not kept_indices:
            raise InputError(f"{config.dataset_name}: balance_lengths leaves no row; leave it out")
        preferences = subset(preferences, kept_indices)
    if config.loss_type != "rao_kupper" and config.max_steps and all(c.is_tie for row in preferences for c in row.comparisons):
        raise InputError(
            f"{config.dataset_name} has ties only, and only loss_type rao_kupper learns from ties: use it, or other rows"
        )
    return preferences


def build_models(config: RewardConfig, vlm: VLM) -> tuple[RewardModel, RewardModel | None]:
    """Return the reward model to train, and the untrained review, or None with another head.

    With tuning full, the latter is the untrained review only until the first step.
    """
    adapters = Adapters(vlm)
    untrained = untrained_role(adapters) if config.head_init == "yes_no" else None
    if check_continues(config):
        role = load_to_continue(config.adapter_path or "", adapters, config)
    else:
        if config.tuning == "full":
            vlm.model.base_model.get_decoder().requires_grad_(True)
        else:
            add_trained_adapter(adapters, "reward", config)
        if config.untrained_prior:
            head = scalar_head(torch.zeros(vlm.hidden_size, device=vlm.device))
        else:
            head = yes_no_head(vlm) if config.head_init == "yes_no" else random_head(vlm, config.seed)
        role = Role(adapters, None if config.tuning == "full" else "reward", head)
    if config.tuning == "head":
        for parameter in adapters.parameters("reward").values():
            parameter.requires_grad_(False)
    model = RewardModel(
        role,
        config.facts,
        config.facts_position,
        load_facts_template(config.facts_template),
        config.max_facts_tokens,
        prior=untrained if config.untrained_prior else None,
        max_length=config.max_length,
    )
    return model, replace(model, role=untrained, prior=None) if untrained is not None else None


@torch.no_grad()
def _measure(
    config: RewardConfig, accelerator: Accelerator, model: RewardModel, measured_rows: MeasuredRows, best: BestModel, step: int
) -> tuple[dict[str, float], bool]:
    """Return loss, accuracy and J on the held-out rows, and whether the weights are the best ones.

    Every process measures all rows, and the mean over processes counts.
    """
    scores = model.score(measured_rows.groups)
    raw_scores_N = torch.tensor([score for row_scores in scores for score in row_scores])
    _, sums = preference_loss(replace(config, center_rewards_coefficient=0.0), measured_rows.rows, raw_scores_N)
    metrics = {"loss": sums["loss"] / len(measured_rows.rows), "accuracy": sums["accuracy"] / (sums["ranked"] or float("nan"))}
    if j := youden_j(measured_rows.outcomes(model)):
        metrics["j"] = j[ALL_KINDS]["j"]
    metrics = {k: accelerator.reduce(torch.tensor(v, device=model.role.vlm.device), "mean").item() for k, v in metrics.items()}
    is_best = config.load_best_model_at_end and best.update(step, metrics[best.metric], model.role)
    return {f"eval/{name}": value for name, value in metrics.items()}, is_best


def _calibrate_and_save(
    model: RewardModel,
    run: Run,
    measured_rows: MeasuredRows,
    outcomes_before: Outcomes,
    last_step: int,
    config: RewardConfig,
    skipped_steps: SkippedSteps,
) -> None:
    """Set scale, temperature, probe rates and J from the measured rows; save the reward model.

    Also sets the accuracy, if the rows were held out.
    """
    with run.progress(len(measured_rows.rows), 0, "calibrate") as progress_bar:
        margins = measured_rows.calibrate(model, progress_bar.advance)
    measured_rows.probe(model, outcomes_before)
    checkpoint.save_reward_model(model, run.path, measured_rows.groups)
    result = {
        "steps": last_step,
        **skipped_steps.metrics(),
        "accuracy": model.accuracy,
        "temperature": model.temperature,
        "probes": model.probes,
        "j": model.j,
        "right": (margins > 0).astype(float).tolist() if measured_rows.is_held_out else None,
        "clusters": measured_rows.clusters if measured_rows.is_held_out else None,
    }
    run.finish(result)
    if model.probes:
        rates = ", ".join(f"{kind} {rate:.0%}" for kind, rate in model.probes.items())
        run.print(f"injected hallucinations that lower the score: {rates} (ppo asks for min_probe_detection_rate of each)")
    else:
        run.print(f"note: no hallucinations were injected: {NOTHING_TO_INJECT}")
    if model.j:
        run.print(j_sentence(model.j))
