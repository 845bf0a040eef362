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

from mmrlhf import claim_terms, losses
from mmrlhf.artefact import load_reward_model
from mmrlhf.config import PPOConfig
from mmrlhf.facts import read_facts, render
from mmrlhf.features import GIB
from mmrlhf.files import write_whole
from mmrlhf.formats import read_examples
from mmrlhf.loading import load
from mmrlhf.memory import peak, plan
from mmrlhf.records import Example, Fact, InputError, Message
from mmrlhf.rewards import RewardModel, fact_rm, prompt_with_facts
from mmrlhf.roles import Adapters, Role, scalar_head
from mmrlhf.rollout import Answers, answer, hidden_states, logps, over_all, some, token_at, values
from mmrlhf.run import Run, load_optimizer, optimizer_tensors
from mmrlhf.sampling import Sampling
from mmrlhf.terms import Entry, Sample, Term, alarms, guards, ledger, ledger_rows, parse, resolve
from mmrlhf.training import apply, learning_rate_factor, pieces, rows_of_step, total_steps
from mmrlhf.vlm import VLM, Prompt

Measure = Callable[[VLM], Mapping[str, float]]
"""Called now and then under the policy's adapter; what it returns is logged. It decides nothing."""


@dataclass(frozen=True)
class Rollout:
    """Answers with all that their update needs, [N, T] each: log-probs under the policy that gave them and under the reference,
    advantages, and (zeros without a critic) values and returns. `critic_prompts` are the prompts as the critic reads them."""

    out: Answers
    critic_prompts: list[Prompt]
    old_NT: Tensor
    ref_NT: Tensor
    advantages_NT: Tensor
    values_NT: Tensor
    returns_NT: Tensor

    def of(self, prompts: Sequence[int]) -> Rollout:
        """That of some prompts."""
        out, where = some(self.out, prompts)
        rest = (self.old_NT, self.ref_NT, self.advantages_NT, self.values_NT, self.returns_NT)
        return Rollout(out, [self.critic_prompts[p] for p in sorted(prompts)], *(tensor[where] for tensor in rest))

    @property
    def read_by_critic(self) -> Answers:
        return replace(self.out, prompts=self.critic_prompts)


def ppo(
    config: PPOConfig,
    examples: Sequence[Example] | None = None,
    measure: Measure | None = None,
    more_terms: Mapping[str, Term] | None = None,
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
    target = run.path / "policy"
    if run.finished:
        return target
    if examples is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder, facts)

    # Four roles; on one base where the reward model belongs to it
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config)
    planned = sum(item.bytes for item in plan(config, vlm.model))
    adapters = Adapters(vlm)
    models = _reward_models(config, adapters, accelerator)
    judge = claim_terms.judge_of(config, adapters)
    on_claims = judge.terms(config.reward_terms) if judge else {}
    terms = resolve(
        config.reward_terms, {"fact_rm": fact_rm(models, config.uncertainty_penalty), **on_claims, **(more_terms or {})}
    )
    shared = bool(models) and models[0].role.adapters is adapters
    adapters.add("policy", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
    policy, reference = Role(adapters, "policy"), Role(adapters, None)
    trainable = [{"params": policy.parameters(), "peak": config.learning_rate}]
    critic = None
    if config.advantage_estimator == "gae":
        if shared:  # the critic starts as the reward model
            adapters.load("value", Path(_paths(config)[0]), trainable=True)
        else:
            adapters.add("value", config.lora_r, config.lora_alpha, config.seed, config.lora_target_modules)
        critic = Role(adapters, "value", scalar_head(torch.zeros(vlm.hidden_size, device=vlm.device)))
        trainable.append({"params": critic.parameters(), "peak": config.critic_learning_rate or config.learning_rate})
    trained = [role for role in (policy, critic) if role is not None]
    parameters = [p for role in trained for p in role.parameters()]
    optimizer = torch.optim.AdamW(trainable, lr=config.learning_rate, weight_decay=config.weight_decay, eps=1e-5)
    how = Sampling(config.response_length, config.temperature, min_tokens=config.min_new_tokens)

    size = config.per_device_train_batch_size * accelerator.num_processes
    total, first = total_steps(config, len(examples), accelerator.num_processes), 0
    if found := run.resume():
        first, tensors, _ = found
        for role in trained:
            role.restore(tensors)
        load_optimizer(optimizer, tensors)

    def measured() -> dict[str, float]:
        if measure is None or not accelerator.is_main_process:
            return {}
        with policy.active():
            return {f"eval/{k}": v for k, v in measure(vlm).items()}

    if first == 0:
        run.log(0, measured())

    recent: list[dict[str, float]] = []
    with run.progress(total, first, "ppo") as steps:
        for step in range(first, total):
            began = time.time()
            # 1. Prompts
            rows = [examples[i] for i in rows_of_step(step, size, len(examples), config.seed)]
            mine = rows[accelerator.process_index :: accelerator.num_processes]

            # 2. Rollout
            with policy.active():
                out = answer(
                    vlm, mine, how, num_generations=config.num_generations, seed=config.seed, step=step,
                    max_length=config.max_length - config.response_length,
                )  # fmt: skip
            mask_NT = out.mask_NT.float()

            # 3. Rewards, term by term
            each = config.num_generations
            lengths = out.mask_NT.sum(1).tolist()
            samples = [
                Sample(e.id, e.images, e.prompt, out.texts[n], e.facts, e.answer, e.meta,
                       tokens=int(lengths[n]), most=config.response_length, ended=bool(out.ended_N[n]))
                for i, e in enumerate(mine) for n in range(i * each, (i + 1) * each)
            ]  # fmt: skip
            entries = ledger(terms, samples, run.path / "failed_term.json")
            scores_N = torch.tensor([entry.total for entry in entries], device=vlm.device)

            # 4. Log-probs of policy and reference, values. In float32 the rollout's own are the policy's; in bfloat16 another kernel
            # differs by hundredths of a nat, and the update's is asked.
            old_NT = out.logps_NT if config.dtype == "float32" else over_all(logps, policy, out)
            ref_NT = over_all(logps, reference, out)
            kl_NT = losses.kl_k1(old_NT, ref_NT)
            if step == 0:
                gap = float((kl_NT * mask_NT).abs().max())
                if gap > (1e-3 if config.dtype == "float32" else 0.2):
                    raise RuntimeError(
                        f"before the first step policy and reference differ by {gap:.2g} nats: the base is not the reference"
                    )

            # 5. Advantages: by the critic, of rewards that the KL shapes; or within each prompt's answers
            critic_prompts = out.prompts
            if critic is not None:
                if config.critic_sees_facts:
                    critic_prompts = _with_facts(vlm, mine, config.max_length - config.response_length, models)
                values_NT = over_all(values, critic, replace(out, prompts=critic_prompts))
                at_end = config.spans_paid == "at_end"
                whole_N = torch.tensor([entry.total if at_end else entry.whole for entry in entries], device=vlm.device)
                rewards_NT = losses.token_rewards(whole_N, kl_NT, mask_NT, config.kl_coef)
                if not at_end:
                    rewards_NT = rewards_NT + _of_spans(vlm, out, entries)
                paid_N = rewards_NT.sum(1)
                if config.whiten_rewards:
                    rewards_NT = _whiten(accelerator, rewards_NT, mask_NT, keep_mean=True)
                advantages_NT, returns_NT = losses.gae(rewards_NT, values_NT, mask_NT, config.gamma, config.lam)
                advantages_NT = _whiten(accelerator, advantages_NT, mask_NT)
            else:
                paid_N = scores_N
                values_NT = returns_NT = torch.zeros_like(old_NT)
                advantages_NT = losses.group_advantages(scores_N.view(-1, each)).view(-1, 1) * mask_NT
            rollout = Rollout(out, critic_prompts, old_NT, ref_NT, advantages_NT, values_NT, returns_NT)

            # 6. Epochs of minibatches
            factor = learning_rate_factor(config, step, total)
            for options in optimizer.param_groups:
                options["lr"] = options["peak"] * factor
            updates: list[dict[str, float]] = []
            for epoch in range(config.num_ppo_epochs):
                order = rows_of_step(0, len(mine), len(mine), config.seed + 1000 * step + epoch)
                for prompts in pieces(order, config.num_mini_batches):
                    minibatch = rollout.of(prompts)
                    tokens = accelerator.reduce(minibatch.out.mask_NT.sum().float(), "sum")
                    sums = vlm.budget.within(_gradients, config, accelerator, optimizer, policy, critic, minibatch, tokens)
                    # Local sums over global token counts: the sum over processes is the mean over tokens.
                    metrics = {k: float(accelerator.reduce(torch.tensor(v, device=vlm.device), "sum")) for k, v in sums.items()}
                    if not updates and config.dtype == "float32":
                        assert abs(metrics["val/ratio"] - 1) < 1e-3, (
                            f"the first minibatch's ratio is {metrics['val/ratio']:.4f}, not 1"
                        )
                    metrics["grad_norm"] = apply(accelerator, optimizer, parameters, config.max_grad_norm)
                    updates.append(metrics)

            # 7. Log
            seen = {
                "objective/kl": (kl_NT * mask_NT).sum(1).mean(),
                "objective/entropy": out.entropy_NT.sum(1).mean(),
                "objective/non_score_reward": (-config.kl_coef * kl_NT * mask_NT).sum(1).mean(),
                "objective/rlhf_reward": scores_N.mean() - config.kl_coef * (kl_NT * mask_NT).sum(1).mean(),
                "objective/scores": scores_N.mean(),
                "policy/entropy_avg": losses.masked_mean(out.entropy_NT, mask_NT),
                "completions/mean_length": mask_NT.sum(1).mean(),
            }
            told = {f"rewards/{t.name}/mean": fmean(entry.terms[t.name] for entry in entries) for t in terms}
            told |= guards(samples, scores_N.tolist(), each)
            if judge is not None:
                told |= claim_terms.guards(judge.said(samples))
                for who in judge.names:
                    told |= claim_terms.rates(judge.verdicts(samples, who), who)
            seen |= {k: torch.tensor(v, device=vlm.device) for k, v in told.items()}
            if critic is not None:
                seen["critic/vf_explained_var"] = losses.explained_variance(values_NT, returns_NT, mask_NT)
            log = {
                "eps": len(rows) * each / max(time.time() - began, 1e-6),
                **{k: v.item() for k, v in accelerator.reduce(seen, "mean").items()},
                "val/num_eos_tokens": accelerator.reduce(out.ended_N.sum().float(), "sum").item(),
                **{k: sum(u[k] for u in updates) / len(updates) for k in updates[0]},
                "val/ratio_first": updates[0]["val/ratio"],
                "lr": config.learning_rate * factor,
                "episode": float((step + 1) * size * each),
                "image_encodes": float(vlm.encodes),
                "memory/peak_gib": peak() / GIB,
                "memory/planned_gib": planned / GIB,
                "image_encodes_again": float(vlm.encoder.cache.count.again),
            }
            if (step + 1) % config.eval_steps == 0 or step + 1 == total:
                log |= measured()
            steps.advance()
            if step == first:
                run.say(
                    f"memory: {peak() / GIB:.2f} GiB at most, {planned / GIB:.2f} planned (`mmrlhf plan ppo`; a process without a model not counted)"
                )
            show = (step + 1) % config.logging_steps == 0
            run.log(step + 1, log)
            claimed = judge.kept(samples) if judge is not None else None
            run.ledger(step + 1, gather_object(ledger_rows(samples, entries, paid_N.tolist(), claimed)))
            recent.append(log)
            if show or step + 1 == total:
                for text in alarms({k: fmean(r[k] for r in recent) for k in log if k.startswith("guard/")}):
                    run.alarm(step + 1, text)
                recent.clear()
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
                roles = {k: v for role in trained for k, v in role.tensors().items()}
                run.save(step + 1, {**roles, **optimizer_tensors(optimizer)}, {})

    if accelerator.is_main_process:
        adapters.save("policy", target)
        write_whole(target / "base.json", json.dumps({"base": vlm.name, "base_fingerprint": vlm.fingerprint}))
        run.finish({"steps": total, "kl": log["objective/kl"] if total > first else None})
    accelerator.wait_for_everyone()
    return target


def _paths(config: PPOConfig) -> list[str]:
    return [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()]


def _reward_models(config: PPOConfig, adapters: Adapters, accelerator: Accelerator) -> list[RewardModel]:
    """Those that the term fact_rm reads; none where it is not asked for. Raises InputError for one that fails too many probes."""
    if "fact_rm" not in parse(config.reward_terms):
        return []
    if not _paths(config):
        raise InputError("reward_terms names fact_rm: give --reward_model_path, or leave fact_rm out")
    models = []
    for number, path in enumerate(_paths(config)):
        name = "reward" if number == 0 else f"reward_{number}"
        model = load_reward_model(path, adapters, config.max_length, accelerator.device, config, name)
        if config.min_probe_rate and not model.probes:
            print(
                f"note: reward model {path} was never probed for false claims: it was trained without facts that such claims are made of"
            )
        for kind, rate in model.probes.items():
            if rate < config.min_probe_rate:
                raise InputError(
                    f"reward model {path} lowers its score for {rate:.0%} of planted false claims of type {kind}, less than "
                    f"min_probe_rate {config.min_probe_rate:g}: a policy would learn to make them; train it on such pairs, or lower "
                    "--min_probe_rate"
                )
        models.append(model)
    return models


def _with_facts(vlm: VLM, rows: Sequence[Example], limit: int, models: Sequence[RewardModel]) -> list[Prompt]:
    """Prompts as a critic reads them that is told the facts, in the words of the first reward model that reads them."""

    def plainly(prompt: Sequence[Message], facts: Sequence[Fact]) -> str:
        return render(facts, zlib.crc32(repr((prompt, facts)).encode()))

    write = next((model.rendered for model in models if model.facts == "given"), plainly)
    texts = [write(e.prompt, e.facts) for e in rows]
    told = [(prompt_with_facts(e.prompt, text), e.images) for e, text in zip(rows, texts, strict=True)]
    return vlm.prompts(told, limit, [e.id for e in rows])


def _of_spans(vlm: VLM, out: Answers, entries: Sequence[Entry]) -> Tensor:
    """What terms pay for spans of characters [N, T]: each at the token that completes its span."""
    paid_NT = torch.zeros_like(out.logps_NT)
    for n, entry in enumerate(entries):
        if any(entry.spans.values()):
            at = token_at(vlm, out.ids_NT[n][out.mask_NT[n].bool()], out.texts[n])
            for spans in entry.spans.values():
                for _, end, worth in spans:
                    paid_NT[n, at[end - 1]] += worth
    return paid_NT


def _gradients(
    config: PPOConfig,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    policy: Role,
    critic: Role | None,
    batch: Rollout,
    tokens: Tensor,
) -> dict[str, float]:
    """Gradients and metrics of one minibatch, whose answers go through the model a micro-batch at a time. `tokens` is its count over all
    processes."""
    optimizer.zero_grad(set_to_none=True)
    sums: Counter[str] = Counter()
    mask_NT = batch.out.mask_NT.float()
    for at, hidden in hidden_states(policy, batch.out):
        t = hidden.shape[1]
        new, m = logps(policy, batch.out, hidden, at), mask_NT[at, :t]
        loss, metrics = losses.ppo_policy(new, batch.old_NT[at, :t], batch.advantages_NT[at, :t], m, config.cliprange, tokens)
        if critic is None:
            loss = loss + config.kl_coef * (losses.kl_k3(new, batch.ref_NT[at, :t]) * m).sum() / tokens
        accelerator.backward(loss)
        sums.update(metrics)
    if critic is not None:
        for at, hidden in hidden_states(critic, batch.read_by_critic):
            t = hidden.shape[1]
            new, m = values(critic, batch.out, hidden, at), mask_NT[at, :t]
            old, returns = batch.values_NT[at, :t], batch.returns_NT[at, :t]
            loss, metrics = losses.ppo_value(new, old, returns, m, config.cliprange_value, tokens)
            accelerator.backward(config.vf_coef * loss)
            sums.update(metrics)
    return dict(sums)


def _whiten(accelerator: Accelerator, values_NT: Tensor, mask_NT: Tensor, *, keep_mean: bool = False) -> Tensor:
    """`losses.masked_whiten` with the mean and variance of all processes."""
    if accelerator.num_processes == 1:
        return losses.masked_whiten(values_NT, mask_NT, keep_mean=keep_mean)
    sums = torch.stack([mask_NT.sum(), (values_NT * mask_NT).sum(), (values_NT**2 * mask_NT).sum()])
    count, total, square = accelerator.reduce(sums, "sum")
    mean = total / count
    white_NT = (values_NT - mean) * torch.rsqrt(square / count - mean**2 + 1e-8)
    return (white_NT + mean if keep_mean else white_NT) * mask_NT
