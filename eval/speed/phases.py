"""Time encoding, sampling, training and the phases of a PPO step, against the device's limit.

    python eval/speed/phases.py --shape llava-1.5-7b|llava-10m|qwen2.5-vl-3b|toy|CHECKPOINT
        [--prompts 8] [--generations 8] [--tokens 128] [--images 64] [--profile] [--out DIR]

The named shapes have random weights, created on the device in bfloat16 on a GPU and in float32 on a
CPU. FLOPs are those of matrix products and attention, which torch counts while a phase runs once
more (with LoRA, the base has no weight gradients), without CUDA graphs: their replays cannot be
counted. The limit is the rate of one large matrix product on the same device. Writes DIR/SHAPE.json
after every measurement, so that a run that is cut short leaves what it measured. `--profile` also
writes the operators and kernels that take the most time, of a rollout and of an update, as text.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from _models import build_vlm, noise_examples
from _timing import time_call
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.prefill import max_logp_gap
from mmrlhf.engine.rollout import LocalEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps, values
from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.images import open_image
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training.ppo import advantages, policy_losses

LORA = (16, 32.0, 0, "q_proj,k_proj,v_proj,o_proj")
"""Rank, alpha, seed and target modules."""


def count_flops(vlm: VLM, work: Callable[[], Any]) -> float:
    """Run `work` once more, without CUDA graphs, and return its FLOPs."""
    use_cuda_graphs, vlm.engine.use_cuda_graphs = vlm.engine.use_cuda_graphs, False
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        vlm.engine.use_cuda_graphs = use_cuda_graphs
    return float(counter.get_total_flops())


def write_profile(path: Path, work: Callable[[], Any]) -> None:
    """Run `work` once more and write the operators and kernels that take the most time."""
    with profile() as profiler:  # of the CPU, and of the GPU if there is one
        time_call(work)
    averages = profiler.key_averages()
    orders = ("self_cuda_time_total", "self_cpu_time_total") if torch.cuda.is_available() else ("self_cpu_time_total",)
    write_atomic(path, "\n".join(averages.table(sort_by=order, row_limit=40, max_name_column_width=90) for order in orders))


def peak_flops_per_s(device: str, dtype: torch.dtype) -> float:
    """Return the FLOPs per second of a large matrix product."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = min(time_call(lambda: a @ a)[0] for _ in range(10))
    return 2 * side**3 / best


@dataclass(frozen=True)
class Setup:
    """The model, sizes and device limit that all measurements use."""

    vlm: VLM
    args: argparse.Namespace
    image_size: int
    peak_flops: float
    """FLOPs per second of a large matrix product."""

    @property
    def on_gpu(self) -> bool:
        return self.vlm.device.type == "cuda"

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that a rollout samples."""
        return int(self.args.prompts * self.args.generations * self.args.tokens)


def measure_encoding(setup: Setup) -> dict[str, float]:
    """Measure encoding from files to features, and the tower alone against the limit."""
    encoder, num_images = setup.vlm.encoder, setup.args.images
    image_rows = [(example.images[0],) for example in noise_examples(num_images + 8, setup.image_size)]
    encoder.get_features(image_rows[:8])  # warm-up
    seconds, _ = time_call(lambda: encoder.get_features(image_rows[8:]))
    prepared = [encoder._preprocess(encoder.feature_key(source, 1), (source, 1)) for (source,) in image_rows[8:]]
    tower_seconds, _ = time_call(lambda: encoder.run_tower(prepared))
    flops = count_flops(setup.vlm, lambda: encoder.run_tower(prepared))
    return {
        "images_per_s": num_images / seconds,
        "tower_images_per_s": num_images / tower_seconds,
        "tower_of_limit": flops / tower_seconds / setup.peak_flops,
    }


def sample_rollout(setup: Setup, policy: Role, examples: list[Example]) -> SampledCompletions:
    params = SamplingParams(setup.args.tokens, min_tokens=setup.args.tokens)
    return LocalEngine(policy).sample(prompts_from_examples(setup.vlm, examples), setup.args.generations, params)


@torch.no_grad()
def hf_generate(setup: Setup, policy: Role, examples: list[Example]) -> Any:
    """Sample the same number of tokens for the same prompts with the model's own `generate`."""
    vlm, num_tokens = setup.vlm, setup.args.tokens
    texts = [vlm.apply_chat_template(example.prompt, 1, generation_prompt=True) for example in examples]
    batch, _ = vlm.encoder.process(texts, [[open_image(example.images[0])] for example in examples])
    batch = {
        name: tensor.to(vlm.device, vlm.model.dtype if tensor.is_floating_point() else None) for name, tensor in batch.items()
    }
    # Image placeholders must not be sampled; ids beyond the tokenizer's 400 tokens do no harm.
    bad_words_ids = [[token_id] for token_id in vlm.suppressed_tokens.tolist() if token_id < 400]
    options = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": True, "top_k": 0}
    with policy.active():
        return vlm.model.generate(**batch, num_return_sequences=setup.args.generations, bad_words_ids=bad_words_ids, **options)


def measure_rollout(setup: Setup, policy: Role, examples: list[Example]) -> tuple[dict[str, float], SampledCompletions]:
    """Measure sampling against `generate` on the same prompts; also return the completions."""
    others = noise_examples(setup.args.prompts, setup.image_size, 4000)
    sample_rollout(setup, policy, others)  # warm-up, on other images: `generate` encodes these, too
    seconds, completions = time_call(lambda: sample_rollout(setup, policy, examples))
    if setup.args.profile:
        write_profile(setup.args.out / "rollout_profile.txt", lambda: sample_rollout(setup, policy, examples))
    hf_generate(setup, policy, examples)  # warm-up
    generate_seconds, _ = time_call(lambda: hf_generate(setup, policy, examples))
    rates = {
        "tokens_per_s": setup.num_tokens / seconds,
        "generate_tokens_per_s": setup.num_tokens / generate_seconds,
        "times_generate": generate_seconds / seconds,
    }
    return rates, completions


def measure_update(setup: Setup, policy: Role, completions: SampledCompletions) -> dict[str, float]:
    """Measure the forward and backward pass of the completions' log-probabilities."""

    def backward_pass() -> None:
        setup.vlm.model.zero_grad(set_to_none=True)
        for indices, hidden in hidden_states(policy, completions):
            (-logps(policy, completions, hidden, indices).sum() / completions.mask_NT.sum()).backward()

    setup.vlm.budget.retry_on_oom(backward_pass)  # warm-up
    seconds, _ = time_call(backward_pass)
    if setup.args.profile:
        write_profile(setup.args.out / "update_profile.txt", backward_pass)
    return {"tokens_per_s": setup.num_tokens / seconds, "mfu": count_flops(setup.vlm, backward_pass) / seconds / setup.peak_flops}


@dataclass(frozen=True)
class PPORoles:
    """The four roles of PPO, which share one base model, and the optimizer of the trained two."""

    policy: Role
    value: Role
    reward: RewardModel
    reference: Role
    optimizer: torch.optim.Optimizer


def add_ppo_roles(setup: Setup, policy: Role, adapters: Adapters) -> PPORoles:
    for name in ("value", "reward"):
        adapters.add(name, *LORA)
    hidden_size, device = setup.vlm.hidden_size, setup.vlm.device
    value = Role(adapters, "value", scalar_head(torch.zeros(hidden_size, device=device)))
    reward = Role(adapters, "reward", scalar_head(torch.randn(hidden_size, device=device)))
    optimizer = torch.optim.AdamW(policy.parameters() + value.parameters(), lr=1e-6)
    return PPORoles(policy, value, RewardModel(reward, "none", "before"), Role(adapters, None), optimizer)


def clear_gradients(role: Role) -> None:
    for parameter in role.parameters():
        parameter.grad = None


def ppo_step(setup: Setup, roles: PPORoles, examples: list[Example], with_flops: bool) -> dict[str, dict[str, float]]:
    """Run one PPO step; return each phase's seconds, TFLOPs and share of the limit."""
    phases: dict[str, dict[str, float]] = {}

    def phase(name: str, work: Callable[[], Any], has_flops: bool = True) -> Any:
        seconds, result = time_call(work)
        flops = count_flops(setup.vlm, work) if with_flops and has_flops else 0.0
        phases[name] = {"seconds": seconds, "tflop": flops / 1e12, "of_limit": flops / seconds / setup.peak_flops}
        return result

    encoder, num_generations = setup.vlm.encoder, setup.args.generations
    rows = [(example.images[0], 1) for example in examples]
    phase("encode", lambda: encoder.encode({encoder.feature_key(*row): row for row in rows}), has_flops=False)
    completions = phase("rollout", lambda: sample_rollout(setup, roles.policy, examples))
    groups = []
    for index, example in enumerate(examples):
        answers = completions.texts[index * num_generations : (index + 1) * num_generations]
        groups.append(AnswerGroup(example.images, example.prompt, tuple(answers)))
    phase("reward", lambda: roles.reward.score(groups))
    reference_logps = phase("reference", lambda: in_micro_batches(logps, roles.reference, completions))
    old_values = phase("values", lambda: in_micro_batches(values, roles.value, completions))
    old_logps, mask = completions.logps_NT, completions.mask_NT.float()
    advantages_NT, returns = advantages.gae(-0.05 * (old_logps - reference_logps), old_values, mask, 1.0, 0.95)
    num_tokens = mask.sum()
    aggregate = policy_losses.Aggregation("dapo", num_tokens, num_answers=len(mask), max_tokens=mask.shape[1])

    # Both start by clearing their gradients, because they run again if a GPU is out of memory.
    def policy_gradients() -> None:
        clear_gradients(roles.policy)
        for indices, hidden in hidden_states(roles.policy, completions):
            new_logps = logps(roles.policy, completions, hidden, indices)
            loss, _ = policy_losses.ppo_policy(
                new_logps, old_logps[indices], advantages_NT[indices], mask[indices], aggregate, cliprange=0.2
            )
            loss.backward()

    def value_gradients() -> None:
        clear_gradients(roles.value)
        for indices, hidden in hidden_states(roles.value, completions):
            new_values = values(roles.value, completions, hidden, indices)
            loss, _ = policy_losses.ppo_value(new_values, old_values[indices], returns[indices], mask[indices], 0.2, num_tokens)
            loss.backward()

    phase("policy update", lambda: setup.vlm.budget.retry_on_oom(policy_gradients))
    phase("value update", lambda: setup.vlm.budget.retry_on_oom(value_gradients))
    phase("optimiser", roles.optimizer.step, has_flops=False)
    roles.optimizer.zero_grad(set_to_none=True)
    return phases


def measure_ppo_step(setup: Setup, roles: PPORoles) -> dict[str, dict[str, float]]:
    """Measure the phases of one PPO step on new images, after a warm-up step on others."""
    ppo_step(setup, roles, noise_examples(setup.args.prompts, setup.image_size, 3000), with_flops=False)
    phases = ppo_step(setup, roles, noise_examples(setup.args.prompts, setup.image_size, 2000), with_flops=True)
    seconds = sum(phase["seconds"] for phase in phases.values())
    tflop = sum(phase["tflop"] for phase in phases.values())
    return phases | {"whole": {"seconds": seconds, "tflop": tflop, "of_limit": 1e12 * tflop / seconds / setup.peak_flops}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="toy", help="llava-1.5-7b, llava-10m, qwen2.5-vl-3b, toy, or a checkpoint folder")
    for name, default in (("prompts", 8), ("generations", 8), ("tokens", 128), ("images", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    image_size = {"qwen2.5-vl-3b": 560, "toy": 56}.get(args.shape, 336)
    setup = Setup(build_vlm(args.shape, device, dtype), args, image_size, peak_flops_per_s(device, dtype))
    results: dict[str, Any] = {
        "shape": args.shape,
        "device": torch.cuda.get_device_name() if setup.on_gpu else "cpu",
        "dtype": str(dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sizes": {name: value for name, value in vars(args).items() if name != "out"},
        "matmul_tflops": setup.peak_flops / 1e12,
    }
    args.out.mkdir(parents=True, exist_ok=True)

    def save(**measurements: Any) -> None:
        results.update(measurements)
        write_atomic(args.out / f"{Path(args.shape).name}.json", json.dumps(results, indent=1) + "\n")

    save(encode=measure_encoding(setup))
    # Largest difference between the engine's and the naive path's log-probs on one prompt, in nats.
    (example,) = noise_examples(1, image_size)
    save(difference=max_logp_gap(setup.vlm, setup.vlm.build_prompts([(example.prompt, example.images)])[0]))

    adapters = Adapters(setup.vlm)
    adapters.add("policy", *LORA)
    policy = Role(adapters, "policy")
    rollout, completions = measure_rollout(setup, policy, noise_examples(args.prompts, image_size, 1000))
    save(rollout=rollout, engine=dataclasses.asdict(setup.vlm.engine))
    if setup.on_gpu:  # the memory of one policy is that of its rollout and update, without `generate`
        torch.cuda.reset_peak_memory_stats()
        sample_rollout(setup, policy, noise_examples(args.prompts, image_size, 5000))
    save(update=measure_update(setup, policy, completions))
    one_policy_bytes = torch.cuda.max_memory_allocated() if setup.on_gpu else 0

    roles = add_ppo_roles(setup, policy, adapters)
    if setup.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    save(ppo_step=measure_ppo_step(setup, roles))
    if setup.on_gpu:
        four_roles_bytes = torch.cuda.max_memory_allocated()
        peak_gib = {"one_policy": one_policy_bytes / 2**30, "four_roles": four_roles_bytes / 2**30}
        save(peak_gib=peak_gib | {"ratio": four_roles_bytes / one_policy_bytes})
    print(json.dumps(results))
    engine = setup.vlm.engine
    if setup.on_gpu and not (engine.share_prefix == "on" and engine.supports_packing and engine.use_cuda_graphs):
        sys.exit(f"the engine fell back to a slower path, so these figures are not its own: {engine}")


if __name__ == "__main__":
    main()
