"""Proximal policy optimisation of a vision-language policy against an image-text reward model, with a critic.

InstructGPT's third step (Ouyang et al. 2022) with Schulman et al. 2017's clipped objective, on one base: `policy` and `value`
are adapters that train, `reward` is an adapter that does not, and the reference is the base alone. The policy and the critic
see the picture and the prompt; facts are read by the reward model only. The value role starts from the reward adapter with a
zero head. Each prompt is run once per role for all of its answers. Left out: adaptive KL, entropy bonus, pre-training mix.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from mmrlhf import losses
from mmrlhf.config import PPOConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import read_examples
from mmrlhf.prefix import extend, prefill
from mmrlhf.records import Example, InputError
from mmrlhf.rewards import Group, load_reward_model
from mmrlhf.roles import Adapters, Role, scalar_head
from mmrlhf.rollout import Answers, answer
from mmrlhf.run import Run, load_optimizer, optimizer_tensors, write_whole
from mmrlhf.training import apply, learning_rate_factor, pieces, rows_of_step, total_steps
from mmrlhf.vlm import VLM, load

Measure = Callable[[VLM], Mapping[str, float]]
"""Called now and then under the policy's adapter; what it returns is logged. It decides nothing."""


def ppo(config: PPOConfig, examples: Sequence[Example] | None = None, measure: Measure | None = None) -> Path:
    """Train on prompts from `examples`, or from the configured data set; returns the adapter's directory."""
    if config.response_length >= config.max_length:
        raise InputError(
            f"response_length {config.response_length} leaves no room for a prompt within max_length {config.max_length}: "
            "raise max_length or lower response_length"
        )
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process)
    target = run.path / "policy"
    if run.finished:
        return target
    if examples is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder, facts)

    # Four roles; on one base where the reward model belongs to it
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device)
    adapters = Adapters(vlm)
    reward_model = load_reward_model(config.reward_model_path, adapters, config.max_length, accelerator.device)
    shared = reward_model.role.adapters is adapters
    like = adapters.peft.peft_config["reward"] if shared and adapters.peft else None
    adapters.add("policy", config.lora_r, config.lora_alpha, config.seed)
    adapters.add("value", like.r if like else config.lora_r, like.lora_alpha if like else config.lora_alpha, config.seed)
    if shared:
        adapters.copy("reward", "value")
    policy = Role(adapters, "policy")
    value = Role(adapters, "value", scalar_head(torch.zeros(vlm.hidden_size, device=vlm.device)))
    reference = Role(adapters, None)
    critic_rate = config.critic_learning_rate or config.learning_rate
    optimizer = torch.optim.AdamW(
        [{"params": policy.parameters(), "peak": config.learning_rate}, {"params": value.parameters(), "peak": critic_rate}],
        lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-5,
    )  # fmt: skip

    size = config.per_device_train_batch_size * accelerator.num_processes
    total, first = total_steps(config, len(examples), accelerator.num_processes), 0
    if found := run.resume():
        first, tensors, _ = found
        policy.restore(tensors)
        value.restore(tensors)
        load_optimizer(optimizer, tensors)

    def measured() -> dict[str, float]:
        if measure is None or not accelerator.is_main_process:
            return {}
        with policy.active():
            return {f"eval/{k}": v for k, v in measure(vlm).items()}

    if first == 0:
        run.log(0, measured())

    with run.progress(total, first, "ppo") as steps:
        for step in range(first, total):
            began = time.time()
            # 1. Prompts
            rows = [examples[i] for i in rows_of_step(step, size, len(examples), config.seed)]
            mine = rows[accelerator.process_index :: accelerator.num_processes]

            # 2. Rollout
            with policy.active():
                out = answer(
                    vlm, mine, num_generations=config.num_generations, response_length=config.response_length,
                    temperature=config.temperature, seed=config.seed, step=step,
                    max_length=config.max_length - config.response_length,
                )  # fmt: skip

            # 3. Rewards of whole answers
            each = config.num_generations
            groups = [
                Group(e.images, e.prompt, tuple(out.texts[i * each : (i + 1) * each]), e.facts, e.id) for i, e in enumerate(mine)
            ]
            scores_N = torch.tensor([s for g in reward_model.score(groups) for s in g], device=vlm.device)
            scores_N = scores_N - config.missing_eos_penalty * (~out.ended_N)

            # 4. Log-probs of policy and reference, values
            with torch.no_grad():
                old_NT, entropy_NT = _logps(policy, out, config.temperature)
                ref_NT, _ = _logps(reference, out, config.temperature)
                values_NT = _values(value, out)
            if step == 0:
                gap = float(((old_NT - ref_NT) * out.mask_NT).abs().max())
                if gap > (1e-4 if config.dtype == "float32" else 0.2):
                    raise RuntimeError(
                        f"before the first step policy and reference differ by {gap:.2g} nats: the base is not the reference"
                    )

            # 5. KL-shaped rewards and advantages
            mask_NT = out.mask_NT.float()
            kl_NT = losses.kl_k1(old_NT, ref_NT)
            rewards_NT = losses.token_rewards(scores_N, kl_NT, mask_NT, config.kl_coef)
            if config.whiten_rewards:
                rewards_NT = _whiten(accelerator, rewards_NT, mask_NT, keep_mean=True)
            advantages_NT, returns_NT = losses.gae(rewards_NT, values_NT, mask_NT, config.gamma, config.lam)
            advantages_NT = _whiten(accelerator, advantages_NT, mask_NT)

            # 6. Epochs of minibatches
            factor = learning_rate_factor(config, step, total)
            for options in optimizer.param_groups:
                options["lr"] = options["peak"] * factor
            updates: list[dict[str, float]] = []
            for epoch in range(config.num_ppo_epochs):
                order = rows_of_step(0, len(mine), len(mine), config.seed + 1000 * step + epoch)
                for prompts in pieces(order, config.num_mini_batches):
                    tokens = accelerator.reduce(_of(out, prompts).mask_NT.sum().float(), "sum")
                    metrics: dict[str, float] = {}
                    for piece in pieces(prompts, config.gradient_accumulation_steps):
                        part = _of(out, piece)
                        at = torch.isin(out.rows_N, torch.tensor(piece, device=vlm.device))
                        # `_of` keeps the order of `at`: ascending prompts
                        m, old, adv = mask_NT[at], old_NT[at], advantages_NT[at]
                        with policy.active():
                            logps, _ = _logps(policy, part, config.temperature)
                            loss, policy_metrics = losses.ppo_policy(logps, old, adv, m, config.cliprange, tokens)
                            accelerator.backward(loss)
                        with value.active():
                            loss, value_metrics = losses.ppo_value(
                                _values(value, part), values_NT[at], returns_NT[at], m, config.cliprange_value, tokens
                            )
                            accelerator.backward(config.vf_coef * loss)
                        for k, v in {**policy_metrics, **value_metrics}.items():
                            metrics[k] = metrics.get(k, 0.0) + v
                    # Local sums over global token counts: the sum over processes is the mean over tokens.
                    metrics = {
                        k: float(accelerator.reduce(torch.tensor(v, device=vlm.device), "sum")) for k, v in metrics.items()
                    }
                    if not updates and config.dtype == "float32":
                        assert abs(metrics["val/ratio"] - 1) < 1e-3, (
                            f"the first minibatch's ratio is {metrics['val/ratio']:.4f}, not 1"
                        )
                    metrics["grad_norm"] = apply(
                        accelerator, optimizer, policy.parameters() + value.parameters(), config.max_grad_norm
                    )
                    updates.append(metrics)

            # 7. Log
            explained = 1 - losses.masked_mean((returns_NT - values_NT) ** 2, mask_NT) / losses.masked_mean(
                (returns_NT - losses.masked_mean(returns_NT, mask_NT)) ** 2, mask_NT
            ).clamp(min=1e-8)
            seen = {
                "objective/kl": (kl_NT * mask_NT).sum(1).mean(),
                "objective/entropy": (entropy_NT * mask_NT).sum(1).mean(),
                "objective/non_score_reward": (-config.kl_coef * kl_NT * mask_NT).sum(1).mean(),
                "objective/rlhf_reward": rewards_NT.sum(1).mean(),
                "objective/scores": scores_N.mean(),
                "policy/entropy_avg": losses.masked_mean(entropy_NT, mask_NT),
                "critic/vf_explained_var": explained,
                "completions/mean_length": mask_NT.sum(1).mean(),
            }
            log = {
                "eps": len(rows) * each / max(time.time() - began, 1e-6),
                **{k: v.item() for k, v in accelerator.reduce(seen, "mean").items()},
                "val/num_eos_tokens": accelerator.reduce(out.ended_N.sum().float(), "sum").item(),
                **{k: sum(u[k] for u in updates) / len(updates) for k in updates[0]},
                "val/ratio_first": updates[0]["val/ratio"],
                "lr": config.learning_rate * factor,
                "episode": float((step + 1) * size * each),
                "image_encodes": float(vlm.encodes),
            }
            if (step + 1) % config.eval_steps == 0 or step + 1 == total:
                log |= measured()
            steps.advance()
            show = (step + 1) % config.logging_steps == 0
            run.log(step + 1, log)
            if show and config.num_sample_generations:
                shown = list(range(0, len(out.texts), max(1, len(out.texts) // config.num_sample_generations)))
                run.samples(
                    step + 1,
                    [
                        {
                            "prompt": mine[i // each].prompt[-1].content,
                            "id": mine[i // each].id,
                            "answer": out.texts[i],
                            "score": round(float(scores_N[i]), 3),
                        }
                        for i in shown[: config.num_sample_generations]
                    ],
                )
            # 8. Save
            if (step + 1) % config.save_steps == 0 and step + 1 < total:
                run.save(step + 1, {**policy.tensors(), **value.tensors(), **optimizer_tensors(optimizer)}, {})

    if accelerator.is_main_process:
        adapters.save("policy", target)
        write_whole(target / "base.json", json.dumps({"base": vlm.name, "base_fingerprint": vlm.fingerprint}))
        run.finish({"steps": total, "kl": log["objective/kl"] if total > first else None})
    accelerator.wait_for_everyone()
    return target


def _of(out: Answers, prompts: Sequence[int]) -> Answers:
    """The answers of some prompts, in the order of `out`."""
    chosen = sorted(prompts)
    keep = torch.isin(out.rows_N, torch.tensor(chosen, device=out.rows_N.device))
    rows = torch.searchsorted(torch.tensor(chosen, device=out.rows_N.device), out.rows_N[keep])
    texts = [t for t, k in zip(out.texts, keep.tolist(), strict=True) if k]
    return Answers([out.prompts[p] for p in chosen], rows, out.ids_NT[keep], out.mask_NT[keep], out.ended_N[keep], texts)


def _hidden(role: Role, out: Answers) -> Tensor:
    """Hidden states [N, T, D] that stand in front of each answer token, under a role."""
    with role.active():
        return extend(role.vlm, prefill(role.vlm, out.prompts), out.rows_N, out.ids_NT[:, :-1], out.mask_NT[:, :-1])


def _logps(role: Role, out: Answers, temperature: float) -> tuple[Tensor, Tensor]:
    return role.vlm.token_logps(_hidden(role, out), out.ids_NT, out.mask_NT, temperature)


def _values(role: Role, out: Answers) -> Tensor:
    assert role.head is not None
    return role.head(_hidden(role, out).float())[..., 0] * out.mask_NT


def _whiten(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """`losses.masked_whiten` with the mean and variance of all processes."""
    if accelerator.num_processes == 1:
        return losses.masked_whiten(values_NT, mask_NT, keep_mean=keep_mean)
    sums = torch.stack([mask_NT.sum(), (values_NT * mask_NT).sum(), (values_NT**2 * mask_NT).sum()])
    count, total, square = accelerator.reduce(sums, "sum")
    mean = total / count
    white_NT = (values_NT - mean) * torch.rsqrt(square / count - mean**2 + 1e-8)
    return (white_NT + mean if keep_mean else white_NT) * mask_NT
