"""Policy optimisation of a vision-language policy against an image-text reward model, with a critic (PPO) or without (GRPO).

InstructGPT's third step (Ouyang et al. 2022) with Schulman et al. 2017's clipped objective, on one base: `policy` and `value`
are adapters that train, `reward` is an adapter that does not, and the reference is the base alone. The policy and the critic
see the picture and the prompt; facts are read by the reward model, and by the critic if it is told to: a baseline may know more than
the policy and stays unbiased (Pinto et al. 2018). The reward is a list of weighted terms (`terms`), each kept for every answer. The value role starts from the reward adapter with a
zero head. GRPO (Shao et al. 2024, DeepSeekMath) takes a prompt's other answers for a critic and puts the KL into the loss.
Each prompt is run once per role for all of its answers. Left out: adaptive KL, entropy bonus, pre-training mix.
"""

from __future__ import annotations

import json
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.datasets import read_examples
from mmrlhf.engine.completions import SampledCompletions, char_to_token, select_prompts
from mmrlhf.engine.rollout import LocalEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams, step_seed
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps, values
from mmrlhf.facts import read_facts, render_facts
from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.image_features import GIB
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import Example, Fact, InputError, Message
from mmrlhf.rewards import claim_rewards, monitors
from mmrlhf.rewards.checkpoint import load_reward_models, reward_model_paths
from mmrlhf.rewards.ledger import RewardBreakdown, ledger_rows, resolve_rewards, score_samples
from mmrlhf.rewards.monitors import hacking_metrics, hacking_warnings
from mmrlhf.rewards.reward_model import RewardModel, make_fact_rm, prompt_with_facts
from mmrlhf.rewards.types import RewardFunction, Sample
from mmrlhf.training import advantages, losses
from mmrlhf.training.advantages import whiten_across_processes
from mmrlhf.training.memory import estimate_memory, peak_memory
from mmrlhf.training.optim import batch_indices, lr_multiplier, optimizer_step, split_minibatches, total_steps
from mmrlhf.training.run import Run, load_optimizer, optimizer_tensors

EvalFunction = Callable[[VLM], Mapping[str, float]]
"""Called now and then under the policy's adapter; what it returns is logged. It decides nothing."""


@dataclass(frozen=True)
class Rollout:
    """Answers with all that their update needs, [N, T] each: log-probs under the policy that gave them and under the reference,
    advantages, and (zeros without a critic) values and returns. `critic_prompts` are the prompts as the critic reads them."""

    completions: SampledCompletions
    critic_prompts: list[Prompt]
    old_logps_NT: Tensor
    ref_logps_NT: Tensor
    advantages_NT: Tensor
    values_NT: Tensor
    returns_NT: Tensor

    def select(self, prompt_indices: Sequence[int]) -> Rollout:
        """That of some prompts."""
        completions, answer_indices = select_prompts(self.completions, prompt_indices)
        tensors = (self.old_logps_NT, self.ref_logps_NT, self.advantages_NT, self.values_NT, self.returns_NT)
        return Rollout(
            completions, [self.critic_prompts[p] for p in sorted(prompt_indices)], *(tensor[answer_indices] for tensor in tensors)
        )

    @property
    def critic_completions(self) -> SampledCompletions:
        return replace(self.completions, prompts=self.critic_prompts)


def ppo(
    config: PPOConfig,
    examples: Sequence[Example] | None = None,
    eval_function: EvalFunction | None = None,
    extra_reward_functions: Mapping[str, RewardFunction] | None = None,
) -> Path:
    """Train on prompts from `examples`, or from the configured data set; returns the adapter's directory.

    `more_terms` are functions that `reward_terms` may name besides those that come with the package.
    """
    if config.response_length >= config.max_length:
        raise InputError(
            f"response_length {config.response_length} leaves no room for a prompt within max_length {config.max_length}: "
            "raise max_length or lower response_length"
        )
    if config.critic_sees_facts and config.advantage_estimator != "gae":
        raise InputError(
            f"critic_sees_facts: advantage_estimator {config.advantage_estimator} has no critic; leave one of them out"
        )
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process)
    adapter_dir = run.path / "policy"
    if run.finished:
        return adapter_dir
    if examples is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder, facts)

    # Four roles; on one base where the reward model belongs to it
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    estimated_bytes = sum(item.num_bytes for item in estimate_memory(config, vlm.model))
    adapters = Adapters(vlm)
    reward_models = load_reward_models(config, adapters, accelerator)
    claim_scorer = claim_rewards.build_claim_scorer(config, adapters)
    claim_reward_functions = claim_scorer.reward_functions(config.reward_terms) if claim_scorer else {}
    weighted_rewards = resolve_rewards(
        config.reward_terms,
        {
            "fact_rm": make_fact_rm(reward_models, config.uncertainty_penalty),
            **claim_reward_functions,
            **(extra_reward_functions or {}),
        },
    )
    shares_base = bool(reward_models) and reward_models[0].role.adapters is adapters
    adapters.add("policy", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    policy, reference = Role(adapters, "policy"), Role(adapters, None)
    param_groups = [{"params": policy.parameters(), "peak": config.learning_rate}]
    critic = None
    if config.advantage_estimator == "gae":
        if shares_base:  # the critic starts as the reward model
            adapters.load("value", Path(reward_model_paths(config)[0]), trainable=True)
        else:
            adapters.add("value", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
        critic = Role(adapters, "value", scalar_head(torch.zeros(vlm.hidden_size, device=vlm.device)))
        param_groups.append({"params": critic.parameters(), "peak": config.critic_learning_rate or config.learning_rate})
    trained_roles = [role for role in (policy, critic) if role is not None]
    parameters = [p for role in trained_roles for p in role.parameters()]
    optimizer = torch.optim.AdamW(param_groups, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-5)
    sampling_params = SamplingParams(config.response_length, config.temperature, min_tokens=config.min_new_tokens)
    engine = LocalEngine(policy)

    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    num_steps, start_step = total_steps(config, len(examples), accelerator.num_processes), 0
    if resumed := run.resume():
        start_step, tensors, _ = resumed
        for role in trained_roles:
            role.load_state_dict(tensors)
        load_optimizer(optimizer, tensors)

    def run_eval() -> dict[str, float]:
        if eval_function is None or not accelerator.is_main_process:
            return {}
        with policy.active():
            return {f"eval/{k}": v for k, v in eval_function(vlm).items()}

    if start_step == 0:
        run.log(0, run_eval())

    recent_metrics: list[dict[str, float]] = []
    with run.progress(num_steps, start_step, "ppo") as progress_bar:
        for step in range(start_step, num_steps):
            start_time = time.time()
            # 1. Prompts
            rows = [examples[i] for i in batch_indices(step, batch_size, len(examples), config.seed)]
            local_rows = rows[accelerator.process_index :: accelerator.num_processes]

            # 2. Rollout
            prompts = prompts_from_examples(vlm, local_rows, config.max_length - config.response_length)
            engine.set_policy(step)
            step_params = replace(sampling_params, seed=step_seed(config.seed, step))
            completions = engine.sample(prompts, config.num_generations, step_params)
            mask_NT = completions.mask_NT.float()

            # 3. Rewards, term by term
            num_generations = config.num_generations
            lengths = completions.mask_NT.sum(1).tolist()
            samples = [
                Sample(e.id, e.images, e.prompt, completions.texts[n], e.facts, e.answer, e.meta,
                       num_tokens=int(lengths[n]), max_tokens=config.response_length, finished=bool(completions.finished_N[n]))
                for i, e in enumerate(local_rows) for n in range(i * num_generations, (i + 1) * num_generations)
            ]  # fmt: skip
            breakdowns = score_samples(weighted_rewards, samples, run.path / "failed_term.json")
            scores_N = torch.tensor([breakdown.total for breakdown in breakdowns], device=vlm.device)

            # 4. Log-probs of policy and reference, values. In float32 the rollout's own are the policy's; in bfloat16 another kernel
            # differs by hundredths of a nat, and the update's is asked.
            old_logps_NT = completions.logps_NT if config.dtype == "float32" else in_micro_batches(logps, policy, completions)
            ref_logps_NT = in_micro_batches(logps, reference, completions)
            kl_NT = losses.kl_k1(old_logps_NT, ref_logps_NT)
            if step == 0:
                max_kl = float((kl_NT * mask_NT).abs().max())
                if max_kl > (1e-3 if config.dtype == "float32" else 0.2):
                    raise RuntimeError(
                        f"before the first step policy and reference differ by {max_kl:.2g} nats: the base is not the reference"
                    )

            # 5. Advantages: by the critic, of rewards that the KL shapes; or within each prompt's answers
            critic_prompts = completions.prompts
            if critic is not None:
                if config.critic_sees_facts:
                    critic_prompts = _critic_prompts_with_facts(
                        vlm, local_rows, config.max_length - config.response_length, reward_models
                    )
                values_NT = in_micro_batches(values, critic, replace(completions, prompts=critic_prompts))
                credit_last_token = config.span_credit == "last_token"
                last_token_rewards_N = torch.tensor(
                    [breakdown.total if credit_last_token else breakdown.answer_total for breakdown in breakdowns],
                    device=vlm.device,
                )
                rewards_NT = advantages.token_rewards(last_token_rewards_N, kl_NT, mask_NT, config.kl_coef)
                if not credit_last_token:
                    rewards_NT = rewards_NT + _span_rewards(vlm, completions, breakdowns)
                total_rewards_N = rewards_NT.sum(1)
                if config.whiten_rewards:
                    rewards_NT = whiten_across_processes(accelerator, rewards_NT, mask_NT, keep_mean=True)
                advantages_NT, returns_NT = advantages.gae(rewards_NT, values_NT, mask_NT, config.gamma, config.lam)
                advantages_NT = whiten_across_processes(accelerator, advantages_NT, mask_NT)
            else:
                total_rewards_N = scores_N
                values_NT = returns_NT = torch.zeros_like(old_logps_NT)
                advantages_NT = advantages.group_advantages(scores_N.view(-1, num_generations)).view(-1, 1) * mask_NT
            rollout = Rollout(completions, critic_prompts, old_logps_NT, ref_logps_NT, advantages_NT, values_NT, returns_NT)

            # 6. Epochs of minibatches
            lr_factor = lr_multiplier(config, step, num_steps)
            for param_group in optimizer.param_groups:
                param_group["lr"] = param_group["peak"] * lr_factor
            update_metrics: list[dict[str, float]] = []
            for epoch in range(config.num_ppo_epochs):
                prompt_order = batch_indices(0, len(local_rows), len(local_rows), config.seed + 1000 * step + epoch)
                for prompt_indices in split_minibatches(prompt_order, config.num_mini_batches):
                    minibatch = rollout.select(prompt_indices)
                    num_tokens = accelerator.reduce(minibatch.completions.mask_NT.sum().float(), "sum")
                    local_metrics = vlm.budget.retry_on_oom(
                        _accumulate_gradients, config, accelerator, optimizer, policy, critic, minibatch, num_tokens
                    )
                    # Local sums over global token counts: the sum over processes is the mean over tokens.
                    metrics = {
                        k: float(accelerator.reduce(torch.tensor(v, device=vlm.device), "sum")) for k, v in local_metrics.items()
                    }
                    if not update_metrics and config.dtype == "float32":
                        assert abs(metrics["val/ratio"] - 1) < 1e-3, (
                            f"the first minibatch's ratio is {metrics['val/ratio']:.4f}, not 1"
                        )
                    metrics["grad_norm"] = optimizer_step(accelerator, optimizer, parameters, config.max_grad_norm)
                    update_metrics.append(metrics)

            # 7. Log
            batch_metrics = {
                "objective/kl": (kl_NT * mask_NT).sum(1).mean(),
                "objective/entropy": completions.entropy_NT.sum(1).mean(),
                "objective/non_score_reward": (-config.kl_coef * kl_NT * mask_NT).sum(1).mean(),
                "objective/rlhf_reward": scores_N.mean() - config.kl_coef * (kl_NT * mask_NT).sum(1).mean(),
                "objective/scores": scores_N.mean(),
                "policy/entropy_avg": losses.masked_mean(completions.entropy_NT, mask_NT),
                "completions/mean_length": mask_NT.sum(1).mean(),
            }
            reward_metrics = {
                f"rewards/{weighted_reward.name}/mean": fmean(breakdown.terms[weighted_reward.name] for breakdown in breakdowns)
                for weighted_reward in weighted_rewards
            }
            reward_metrics |= hacking_metrics(samples, scores_N.tolist(), num_generations)
            if claim_scorer is not None:
                reward_metrics |= monitors.claim_hacking_metrics(claim_scorer.extract(samples))
                for verifier_name in claim_scorer.verifier_names:
                    reward_metrics |= monitors.verdict_rates(claim_scorer.verdicts(samples, verifier_name), verifier_name)
            batch_metrics |= {k: torch.tensor(v, device=vlm.device) for k, v in reward_metrics.items()}
            if critic is not None:
                batch_metrics["critic/vf_explained_var"] = advantages.explained_variance(values_NT, returns_NT, mask_NT)
            step_metrics = {
                "eps": len(rows) * num_generations / max(time.time() - start_time, 1e-6),
                **{k: v.item() for k, v in accelerator.reduce(batch_metrics, "mean").items()},
                "val/num_eos_tokens": accelerator.reduce(completions.finished_N.sum().float(), "sum").item(),
                **{k: sum(u[k] for u in update_metrics) / len(update_metrics) for k in update_metrics[0]},
                "val/ratio_first": update_metrics[0]["val/ratio"],
                "lr": config.learning_rate * lr_factor,
                "episode": float((step + 1) * batch_size * num_generations),
                "image_encodes": float(vlm.image_encodes),
                "memory/peak_gib": peak_memory() / GIB,
                "memory/planned_gib": estimated_bytes / GIB,
                "image_reencodes": float(vlm.encoder.cache.counters.reencodes),
            }
            if (step + 1) % config.eval_steps == 0 or step + 1 == num_steps:
                step_metrics |= run_eval()
            progress_bar.advance()
            if step == start_step:
                run.print(
                    f"memory: {peak_memory() / GIB:.2f} GiB at most, {estimated_bytes / GIB:.2f} planned (`mmrlhf plan ppo`; a process without a model not counted)"
                )
            should_log = (step + 1) % config.logging_steps == 0
            run.log(step + 1, step_metrics)
            claim_rows = claim_scorer.ledger_rows(samples) if claim_scorer is not None else None
            run.log_ledger(step + 1, gather_object(ledger_rows(samples, breakdowns, total_rewards_N.tolist(), claim_rows)))
            recent_metrics.append(step_metrics)
            if should_log or step + 1 == num_steps:
                for warning in hacking_warnings(
                    {k: fmean(r[k] for r in recent_metrics) for k in step_metrics if k.startswith("hacking/")}
                ):
                    run.warn(step + 1, warning)
                recent_metrics.clear()
            if should_log and config.num_sample_generations:
                sample_indices = list(
                    range(0, len(completions.texts), max(1, len(completions.texts) // config.num_sample_generations))
                )
                run.log_samples(
                    step + 1,
                    [
                        {
                            "prompt": local_rows[i // num_generations].prompt[-1].content,
                            "id": local_rows[i // num_generations].id,
                            "answer": completions.texts[i],
                            "score": round(float(scores_N[i]), 3),
                        }
                        for i in sample_indices[: config.num_sample_generations]
                    ],
                )
            # 8. Save
            if (step + 1) % config.save_steps == 0 and step + 1 < num_steps:
                role_tensors = {k: v for role in trained_roles for k, v in role.state_dict().items()}
                run.save_checkpoint(step + 1, {**role_tensors, **optimizer_tensors(optimizer)}, {})

    if accelerator.is_main_process:
        adapters.save("policy", adapter_dir)
        write_atomic(adapter_dir / "base.json", json.dumps({"base": vlm.name, "base_fingerprint": vlm.fingerprint}))
        run.finish({"steps": num_steps, "kl": step_metrics["objective/kl"] if num_steps > start_step else None})
    accelerator.wait_for_everyone()
    return adapter_dir


def _critic_prompts_with_facts(
    vlm: VLM, examples: Sequence[Example], max_length: int, reward_models: Sequence[RewardModel]
) -> list[Prompt]:
    """Prompts as a critic reads them that is told the facts, in the words of the first reward model that reads them."""

    def render_default(prompt: Sequence[Message], facts: Sequence[Fact]) -> str:
        return render_facts(facts, zlib.crc32(repr((prompt, facts)).encode()))

    render_for_critic = next(
        (reward_model.facts_text for reward_model in reward_models if reward_model.facts == "given"), render_default
    )
    facts_texts = [render_for_critic(e.prompt, e.facts) for e in examples]
    conversations = [
        (prompt_with_facts(e.prompt, facts_text), e.images) for e, facts_text in zip(examples, facts_texts, strict=True)
    ]
    return vlm.build_prompts(conversations, max_length, [e.id for e in examples])


def _span_rewards(vlm: VLM, completions: SampledCompletions, breakdowns: Sequence[RewardBreakdown]) -> Tensor:
    """What terms pay for spans of characters [N, T]: each at the token that completes its span."""
    rewards_NT = torch.zeros_like(completions.logps_NT)
    for n, breakdown in enumerate(breakdowns):
        if any(breakdown.spans.values()):
            token_of_char = char_to_token(vlm, completions.token_ids_NT[n][completions.mask_NT[n].bool()], completions.texts[n])
            for spans in breakdown.spans.values():
                for _, end, span_reward in spans:
                    rewards_NT[n, token_of_char[end - 1]] += span_reward
    return rewards_NT


def _accumulate_gradients(
    config: PPOConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    policy: Role,
    critic: Role | None,
    minibatch: Rollout,
    num_tokens: Tensor,
) -> dict[str, float]:
    """Gradients and metrics of one minibatch, whose answers go through the model a micro-batch at a time. `tokens` is its count over all
    processes."""
    optimizer.zero_grad(set_to_none=True)
    metric_sums: Counter[str] = Counter()
    mask_NT = minibatch.completions.mask_NT.float()
    for answer_indices, hidden_NTD in hidden_states(policy, minibatch.completions):
        width = hidden_NTD.shape[1]
        new_NT, micro_mask_NT = logps(policy, minibatch.completions, hidden_NTD, answer_indices), mask_NT[answer_indices, :width]
        loss, metrics = losses.ppo_policy(
            new_NT,
            minibatch.old_logps_NT[answer_indices, :width],
            minibatch.advantages_NT[answer_indices, :width],
            micro_mask_NT,
            config.cliprange,
            num_tokens,
        )
        if critic is None:
            loss = (
                loss
                + config.kl_coef
                * (losses.kl_k3(new_NT, minibatch.ref_logps_NT[answer_indices, :width]) * micro_mask_NT).sum()
                / num_tokens
            )
        accelerator.backward(loss)
        metric_sums.update(metrics)
    if critic is not None:
        for answer_indices, hidden_NTD in hidden_states(critic, minibatch.critic_completions):
            width = hidden_NTD.shape[1]
            new_NT, micro_mask_NT = (
                values(critic, minibatch.completions, hidden_NTD, answer_indices),
                mask_NT[answer_indices, :width],
            )
            old_values_NT, returns_NT = minibatch.values_NT[answer_indices, :width], minibatch.returns_NT[answer_indices, :width]
            loss, metrics = losses.ppo_value(new_NT, old_values_NT, returns_NT, micro_mask_NT, config.cliprange_value, num_tokens)
            accelerator.backward(config.vf_coef * loss)
            metric_sums.update(metrics)
    return dict(metric_sums)
