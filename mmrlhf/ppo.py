"""Optimise a vision-language policy against an image-text reward: PPO and GRPO.

This is InstructGPT's third step (Ouyang et al. 2022) with the clipped objective of Schulman et al.
2017. The roles share one base model: `policy` and `value` are trained adapters, `reward` is a
frozen adapter, and the reference is the base without an adapter. Policy and critic see the image
and the prompt. The reward model also reads the facts, and with `critic_sees_facts` so does the
critic: a baseline may know more than the policy without adding bias (Pinto et al. 2018). The reward
is a weighted sum of reward functions, and the ledger records each function's value for every
answer. The critic starts from the reward adapter with a zero head. Other estimators of advantages
(RLOO, GRPO, REINFORCE++) compare answers instead of training a critic; docs/algorithms.md has the
formulas. In each role, a prompt runs once for all of its answers. Not implemented: an entropy
bonus.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mmrlhf.config import PPOConfig
from mmrlhf.datasets import read_examples, subset
from mmrlhf.engine.rollout import RolloutEngine
from mmrlhf.engine.scoring import in_micro_batches, logps, values
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.evaluation.policy_eval import EvalFunction, PolicyEvaluation
from mmrlhf.files.writing import writes
from mmrlhf.models import sharding
from mmrlhf.models.export import save_policy
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.loading import load_base
from mmrlhf.models.lost_process import LostProcessError
from mmrlhf.models.policy import check_adapter_setting
from mmrlhf.models.processes import Accelerator
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.build import check_reward_rows, check_rewards, penalty_note
from mmrlhf.rewards.credit import span_rewards
from mmrlhf.rewards.ledger import FAILURE_FILE
from mmrlhf.rewards.types import RewardFunction
from mmrlhf.training.memory import estimate_memory
from mmrlhf.training.monitor import REWARD
from mmrlhf.training.optim import set_learning_rate
from mmrlhf.training.ppo import advantages, policy_losses
from mmrlhf.training.ppo.batch import PPOBatch, check_policy_is_reference
from mmrlhf.training.ppo.engine import check_engine, open_engine, publish_sampler
from mmrlhf.training.ppo.kl_controller import KLController
from mmrlhf.training.ppo.metrics import (
    log_step,
    possible_warnings,
    print_memory,
    progress_metrics,
    step_metrics,
    stop_at_max_kl,
    system_metrics,
)
from mmrlhf.training.ppo.prompt_order import PromptOrder
from mmrlhf.training.ppo.ptx import PTXRows, read_ptx_rows, usable_ptx_rows
from mmrlhf.training.ppo.roles import PPORoles, critic_messages, critic_prompts_with_facts, load_roles
from mmrlhf.training.ppo.rollout import Rollout, collect_rollout, finish_rollout, start_rollout
from mmrlhf.training.ppo.settings import check_minibatches, check_settings
from mmrlhf.training.ppo.state import PPOState, build_optimizer
from mmrlhf.training.ppo.update import update_roles
from mmrlhf.training.row_checks import KeptChecks, Length, rewarded_lengths, usable_indices
from mmrlhf.training.row_order import total_steps
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import open_rows
from mmrlhf.training.skipped_steps import SkippedSteps


@writes("output_dir")
def ppo(
    config: PPOConfig,
    examples: Sequence[Example] | None = None,
    eval_function: EvalFunction | None = None,
    extra_reward_functions: Mapping[str, RewardFunction] | None = None,
) -> Path:
    """Train on prompts from `examples`, or from the configured dataset; return the adapter folder.

    `eval_function` is called at the steps of evaluations, in addition to `eval_benchmarks`.
    `reward_terms` may name `extra_reward_functions`. Raises InputError if settings, data or models
    are unusable.
    """
    check_rewards(config, extra_reward_functions or ())
    check_settings(config)
    evaluation = PolicyEvaluation(config, eval_function, REWARD, possible_warnings(config))
    accelerator = Accelerator()
    check_minibatches(config, accelerator.num_processes)
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    adapter_dir = run.path / "policy"
    examples, kept = open_rows(config, run, examples, read_examples)
    ptx_examples = read_ptx_rows(config, run) if config.ptx_dataset_name else ()
    evaluation.claim(run, examples)
    if run.is_finished:
        run.print_finished(adapter_dir)
        return adapter_dir

    check_reward_rows(config, examples)
    if note := penalty_note(config.reward_terms):
        run.print(note)
    check_adapter_setting(config.adapter_path, "lora")
    check_engine(config, accelerator.num_processes)
    vlm = load_base(config, accelerator)
    num_shards = accelerator.num_processes if sharding.is_sharded(vlm.model) else 1
    estimated_bytes = sum(item.num_bytes for item in estimate_memory(config, vlm.model, vlm.fingerprint, num_shards))
    roles = load_roles(config, vlm, accelerator, extra_reward_functions)
    examples = _usable_examples(config, roles, examples, run, kept)
    ptx_rows = None
    if ptx_examples:
        ptx_rows = PTXRows(config, vlm, usable_ptx_rows(config, vlm, ptx_examples, run), accelerator)
    num_steps = total_steps(config, len(examples), accelerator.num_processes)
    state = PPOState(
        roles=roles,
        optimizer=build_optimizer(config, roles),
        prompt_order=PromptOrder(examples, config.seed),
        kl_controller=KLController.from_config(config, answers_per_step(config, accelerator)),
        skipped_steps=SkippedSteps(run, "ppo", config, accelerator, roles.changing, num_steps),
    )
    evaluation.plan(examples, num_steps)
    with open_engine(config, accelerator, roles, run.path) as engine:
        _train(config, accelerator, run, evaluation, state, engine, ptx_rows, num_steps, estimated_bytes)

    if accelerator.is_main_process:
        best = evaluation.finish(run, roles.policy, adapter_dir)
        save_policy(roles.adapters, "policy", adapter_dir)
        result = {"steps": evaluation.num_steps, "kl": state.kl, **state.skipped_steps.metrics(), **best}
        run.finish(result | ({"stopped": state.stopped} if state.stopped else {}))
    accelerator.wait_for_everyone()
    return adapter_dir


def _train(
    config: PPOConfig,
    accelerator: Accelerator,
    run: Run,
    evaluation: PolicyEvaluation,
    state: PPOState,
    engine: RolloutEngine,
    ptx_rows: PTXRows | None,
    num_steps: int,
    estimated_bytes: int,
) -> None:
    """Take the remaining steps; then `evaluation.num_steps` is the step at which the run ended."""
    roles, policy, start_step = state.roles, state.roles.policy, 0
    if resumed := run.resume(num_steps):
        start_step, tensors, saved_state = resumed
        state.restore(tensors, saved_state, start_step * config.per_device_train_batch_size * accelerator.num_processes)
        if state.stopped:
            evaluation.num_steps = start_step
        evaluation.restore(tensors, saved_state, start_step)
    if state.was_ahead and start_step < evaluation.num_steps:
        state.started = start_rollout(config, accelerator, roles, engine, state.prompt_order, run.path, start_step)
    else:  # an engine that is down ends the run here, before anything is evaluated
        roles.sync_sampler()
        publish_sampler(config, accelerator, roles, engine, run.path, start_step)
    if start_step == 0:
        run.log(0, evaluation.evaluate(run, accelerator, policy, 0))

    with run.progress(num_steps, start_step, "ppo") as progress_bar:
        for step in range(start_step, evaluation.num_steps):
            start_time, learning_rate = time.time(), set_learning_rate(state.optimizer, config, step, num_steps)
            with state.skipped_steps.attempt(step + 1, ()) as attempt:
                # 1-3. Prompts, rollout, rewards
                position, started, state.started = state.prompt_order.position, state.started, None
                try:
                    if started is not None:
                        rollout = finish_rollout(config, roles, started, attempt, run.path / FAILURE_FILE)
                    else:
                        roles.sync_sampler()
                        publish_sampler(config, accelerator, roles, engine, run.path, step)
                        rollout = collect_rollout(
                            config, accelerator, roles, engine, state.prompt_order, step, attempt, run.path / FAILURE_FILE
                        )
                except (NotFiniteError, LostProcessError):
                    raise  # the step is skipped; nothing can be saved together
                except InputError as error:
                    state.prompt_order.position, state.started = position, started
                    refusal = _save_and_stop(run, evaluation, state, step, error)
                    accelerator.wait_for_everyone()  # the first process that leaves ends the others
                    raise refusal from None

                # 4-5. Log-probs, values, advantages
                batch = build_batch(config, accelerator, roles, rollout, step, state.kl_controller.coef)
                attempt.batch, attempt.numbers = batch.tensors(), {"kl_coef": batch.kl_coef, "value_clip": batch.value_clip}
                state.stopped = stop_at_max_kl(config, batch, step)

                # 6. Epochs of minibatches
                updates: list[dict[str, float]] = []
                if not state.stopped:
                    if config.async_steps and step + 1 < num_steps:
                        roles.sync_sampler()
                        state.started = start_rollout(config, accelerator, roles, engine, state.prompt_order, run.path, step + 1)
                    updates = update_roles(config, accelerator, state.optimizer, roles, rollout, batch, ptx_rows, step, attempt)

                # 7. Log
                metrics = step_metrics(config, accelerator, roles, batch, updates, rollout.policy_version) | rollout.metrics
                state.kl = metrics["objective/kl"]
                state.kl_controller.update(state.kl)
            metrics = ({} if attempt.is_skipped else metrics) | state.skipped_steps.metrics()
            metrics |= system_metrics(roles.vlm, estimated_bytes)
            metrics |= progress_metrics(step, answers_per_step(config, accelerator), start_time, learning_rate)
            if config.sync_ref_model and (step + 1) % config.ref_model_sync_steps == 0:
                roles.sync_reference()
            if state.stopped:
                evaluation.num_steps = step + 1
            metrics |= evaluation.evaluate(run, accelerator, policy, step + 1)
            progress_bar.advance()
            if step == start_step:
                print_memory(run, estimated_bytes)
            is_logging_step = step + 1 == evaluation.num_steps or (step + 1) % config.logging_steps == 0
            if attempt.is_skipped:
                run.log(step + 1, metrics)
                if is_logging_step:
                    run.print_row(step + 1, {})
            else:
                log_step(config, run, roles, batch, metrics, step, is_logging_step)
            stop = evaluation.after_step(run, accelerator, step + 1, metrics, is_logging_step)
            is_last = step + 1 == evaluation.num_steps

            # 8. Save
            is_save_due = run.end_step(step + 1, is_last=is_last)
            if is_save_due or stop or state.skipped_steps.may_stop:
                evaluation.save_best(run, policy)
                (tensors, saved_state), (best_tensors, best_state) = state.checkpoint(), evaluation.checkpoint()
                run.save_checkpoint(step + 1, tensors | best_tensors, saved_state | best_state)
                if stop:
                    raise InputError(stop)
            if state.stopped:
                run.print(state.stopped)
            if is_last:
                break


def check_recipe(config: PPOConfig, eval_function: EvalFunction | None = None) -> None:
    """Raise InputError, before anything is loaded, for settings that `ppo` refuses."""
    check_rewards(config)
    check_settings(config)
    PolicyEvaluation(config, eval_function, REWARD, possible_warnings(config))


def _save_and_stop(run: Run, evaluation: PolicyEvaluation, state: PPOState, step: int, error: InputError) -> InputError:
    """Save before a step whose answers are not available, and return why the run stops."""
    if step == 0:
        return InputError(str(error))
    evaluation.save_best(run, state.roles.policy)
    (tensors, saved_state), (best_tensors, best_state) = state.checkpoint(), evaluation.checkpoint()
    try:
        run.save_checkpoint(step, tensors | best_tensors, saved_state | best_state)
    except InputError as failure:
        return InputError(f"{error}; {failure}")
    change = "" if isinstance(error, EngineError) else " (add --allow_change reward_terms if you change the reward)"
    return InputError(f"{error}; {run.path} is saved after step {step}, and the same command goes on from there{change}")


def answers_per_step(config: PPOConfig, accelerator: Accelerator) -> int:
    """Return the number of answers of a step, over all processes."""
    return config.per_device_train_batch_size * accelerator.num_processes * config.num_generations


def _usable_examples(
    config: PPOConfig, roles: PPORoles, examples: Sequence[Example], run: Run, kept: KeptChecks | None
) -> Sequence[Example]:
    """Return the examples with prompts that leave room for an answer, for each of the models.

    Raises InputError as `usable_indices` does.
    """
    lengths = PromptLengths(roles.vlm, config.max_pixels)
    lengths_of_answer = rewarded_lengths(config, roles.vlm, lengths, roles.reward_models)

    def lengths_of(example: Example) -> Iterator[Length]:
        yield from lengths_of_answer(example)
        if roles.critic is not None and config.critic_sees_facts:
            num_tokens = lengths.count(critic_messages(example, roles.reward_models), example.images)
            yield Length(num_tokens + config.response_length, lengths.limit(config.max_length))

    return subset(examples, usable_indices(examples, config, config.dataset_name, lengths_of, lengths, run.console, kept))


def build_batch(
    config: PPOConfig, accelerator: Accelerator, roles: PPORoles, rollout: Rollout, step: int, kl_coef: float
) -> PPOBatch:
    """Score a rollout's answers by policy, reference and critic; estimate their advantages.

    `kl_coef` is the step's weight of the KL.
    """
    vlm, critic, completions = roles.vlm, roles.critic, rollout.completions
    mask_NT = completions.mask_NT.float()
    # 3. The rewards of answers
    breakdowns = roles.aggregation(rollout.breakdowns, rollout.samples)
    totals_N = torch.tensor([breakdown.total for breakdown in breakdowns], device=vlm.device)

    # 4. Log-probs of sampler and reference. In float32 the sampler's are those of the rollout. In
    # bfloat16 the decoding kernels differ from the update's by hundredths of a nat, and those of
    # another engine always do: recompute.
    old_logps_NT = completions.logps_NT
    if config.dtype != "float32" or not config.samples_locally:
        old_logps_NT = in_micro_batches(logps, roles.sampler, completions)
    ref_logps_NT = in_micro_batches(logps, roles.reference, completions)
    if step == 0:
        check_policy_is_reference(policy_losses.kl_k1(old_logps_NT, ref_logps_NT) * mask_NT, config.dtype)

    # 5. Rewards of tokens, values, advantages
    kl_NT = policy_losses.kl(config.penalized_kl, old_logps_NT, ref_logps_NT)
    reward_kl_coef = 0.0 if config.kl_in_loss else kl_coef
    if config.credits_spans:
        answer_rewards_N = torch.tensor([breakdown.answer_total for breakdown in breakdowns], device=vlm.device)
        rewards_NT = advantages.token_rewards(answer_rewards_N, kl_NT, mask_NT, reward_kl_coef)
        rewards_NT = rewards_NT + span_rewards(vlm, completions, breakdowns)
    else:
        rewards_NT = advantages.token_rewards(totals_N, kl_NT, mask_NT, reward_kl_coef)
    critic_prompts, values_NT = completions.prompts, torch.zeros_like(rewards_NT)
    if critic is not None:
        if config.critic_sees_facts:
            max_prompt_length = config.max_length - config.response_length
            critic_prompts = critic_prompts_with_facts(vlm, rollout.rows, max_prompt_length, roles.reward_models)
        values_NT = in_micro_batches(values, critic, replace(completions, prompts=critic_prompts))
    shaped_NT = rewards_NT
    if config.whiten_rewards:
        shaped_NT = advantages.whiten(accelerator, rewards_NT, mask_NT, keep_mean=True)
    advantages_NT, returns_NT = advantages.estimate(
        config.advantage_estimator, shaped_NT, values_NT, mask_NT,
        group_size=config.num_generations, gamma=config.gamma, lam=config.gae_lambda,
        scale_groups=config.advantage_scaling == "group",
    )  # fmt: skip
    value_unit = advantages.rms(accelerator, returns_NT, mask_NT) if config.cliprange_value_unit == "returns" else 1.0
    advantages_NT = advantages.scale(accelerator, config.advantage_scaling, advantages_NT, shaped_NT, mask_NT)
    return PPOBatch(
        samples=rollout.samples,
        breakdowns=breakdowns,
        completions=completions,
        critic_prompts=critic_prompts,
        old_logps_NT=old_logps_NT,
        ref_logps_NT=ref_logps_NT,
        rewards_NT=rewards_NT,
        advantages_NT=advantages_NT,
        values_NT=values_NT,
        returns_NT=returns_NT,
        kl_coef=kl_coef,
        value_clip=config.cliprange_value * value_unit,
    )
